"""Writes the sections of the benchmarks page that are made of figures: `python -m ops.bench.page`. Each command of
the table leaves its figures in out/sample; the page shows them with the command, machine and date."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ops.bench import table
from ops.bench.capacity import table as capacity
from ops.bench.gpu import report as gpu

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "ops" / "docs" / "benchmarks.md"
SAMPLE: Final = ROOT / "out" / "sample"


class Section(msgspec.Struct, frozen=True):
    """One section: the file of its figures below out/sample, the command that makes it, and how it is rendered."""

    figures: str
    command: str
    render: Callable[[bytes], str]
    plot: str = ""  # what it shows; its file is that of the figures, as .svg


def _proxies(data: bytes) -> str:
    return table.render(msgspec.json.decode(data, type=table.Result))


def _capacity(data: bytes) -> str:
    return capacity.markdown(msgspec.json.decode(data, type=capacity.Result))


def _gpu(data: bytes) -> str:
    return gpu.section(msgspec.json.decode(data, type=gpu.Report))


SECTIONS: Final[Mapping[str, Section]] = {
    "proxies": Section(
        "proxies/proxies.json",
        "python -m ops.bench --subjects nginx,vllm-router-rr,skeleton,aiohttp-naive,gateway-private,gateway "
        "--workloads json,c64,ttft --scale 0.4 --engine-port 9000 "
        "--command 'skeleton=python SKELETON/gateway.py {port}' --out out/sample/proxies/proxies.json",
        _proxies,
        "CPU of each program by workload",
    ),
    "streams": Section(
        "capacity/streams.json",
        "python -m ops.bench.capacity streams --out out/sample/capacity",
        _capacity,
        "The longest gaps and the TTFT by number of streams",
    ),
    "hits": Section(
        "capacity/hits.json", "python -m ops.bench.capacity hits --out out/sample/capacity", _capacity
    ),
    "memory": Section(
        "capacity/memory.json", "python -m ops.bench.capacity memory --out out/sample/capacity", _capacity
    ),
    "gpu": Section(
        "gpu/report.json",
        "python -m ops.bench.gpu --out out/sample/gpu",
        _gpu,
        "TTFT, time per token and tokens/s by number of streams",
    ),
}


def text_of(section: Section, sample: Path = SAMPLE) -> str:
    """The section as its figures make it; without figures, the command that makes them."""
    path = sample / section.figures
    if not path.exists():
        return f"Not measured yet: `{section.command}`."
    text = section.render(path.read_bytes()).strip()
    drawn = path.with_suffix(".svg")
    if section.plot and drawn.exists():
        text += f"\n\n![{section.plot}](../../out/sample/{drawn.relative_to(sample).as_posix()})"
    return text


def with_sections(page: str, sample: Path = SAMPLE) -> str:
    """The page with every section between its two comments. Raises ValueError if one has no place or several."""
    for name, section in SECTIONS.items():
        place = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"the page must have one place for the section {name}")
        text = text_of(section, sample)
        page = place.sub(lambda found, text=text: found[1] + text + found[2], page)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_sections(PAGE.read_text("utf-8")), "utf-8")
