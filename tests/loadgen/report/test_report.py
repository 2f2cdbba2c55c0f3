"""Reports: the same facts in each form, self-contained, and no text from outside becomes markup."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.format import cell, digits, percent, signed
from loadgen.analysis.stats import Bounds, Quantile
from loadgen.analysis.summary import in_order, measure_records, summarise
from loadgen.record import Event, Kind, Record, Run
from loadgen.report import html as report_html
from loadgen.report import markdown as report_md
from loadgen.report import plots as drawing
from loadgen.report.plot_style import Sheet, styled, ticks_between
from loadgen.report.plots import plots_available
from loadgen.report.view import view
from loadgen.report.write import Files, report_of, write_report
from tests.kit.missing import extra, needs
from tests.loadgen.kit.sampling import Load, ab_records, records, run_of, sweep_records

HOSTILE = (
    "<script src=http://evil.example/x.js>alert(1)</script>\"'><img src=x onerror=y>"
    "|`a`[l](http://e.example)\x1b[31m\n# h"
)
VOID = {"meta", "br", "img", "link", "input", "hr"}
LOADS = {"src", "href", "xlink:href", "data", "poster", "action", "srcset"}
RAN: dict[str, Callable[[], Iterable[Record]]] = {
    "run": lambda: records(Load(requests=120, shared=True)),
    "plain": lambda: records(Load(requests=60, continuous=False, merged=0)),
    "ab": lambda: iter(ab_records(60)),
    "sweep": lambda: sweep_records((2, 8, 20), requests=60),
    "empty": lambda: iter(()),
}

ALWAYS = {"ttft", "itl", "e2e", "lengths", "timeline", "goodput"}
PLOTTED = {
    "run": ALWAYS,
    "plain": ALWAYS,
    "ab": {*ALWAYS, "paired"},
    "sweep": {*ALWAYS, "pareto", "sweep"},
    "empty": {"goodput"},
}


class Page(HTMLParser):
    """What is in a page: tags closed in order, what it would load, what it would run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            self.loads += [value or ""] if name in LOADS and not (value or "").startswith("#") else []
            self.ids += [value or ""] if name == "id" else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data


def reports(folder: Path, run: Run, seen: Iterable[Record]) -> dict[str, str]:
    everything = list(seen)
    files = Files(folder)
    requests = in_order(measure_records(everything))
    write_report(report_of(run, requests, summarise(run, everything, {"ttft": 60.0, "tpot": 14.0})), files)
    assert files.lost == []
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".html", ".json")}


def hostile() -> tuple[Run, list[Record]]:
    run = run_of(HOSTILE, invalid=[HOSTILE])
    run.model, run.endpoint, run.command = HOSTILE, HOSTILE, ["loadgen", HOSTILE]
    run.warnings, run.machine, run.config = [HOSTILE], {HOSTILE: HOSTILE}, {**run.config, HOSTILE: HOSTILE}
    run.targets = {"a": HOSTILE}
    seen = list(records(Load(requests=60, shared=True, stage=HOSTILE)))
    for record in seen[10:14]:
        record.failure, record.detail = "garbage", HOSTILE
    for record in seen[14:20]:
        record.shared = HOSTILE
    return run, seen


@pytest.fixture
def tables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "plots_available", lambda: False)


@pytest.mark.parametrize("kind", RAN)
def test_every_kind_of_run_has_its_reports_and_its_plots(kind: str, tmp_path: Path) -> None:
    found = reports(tmp_path, run_of(kind), RAN[kind]())
    page = Page(found["report.html"])
    assert page.open == []
    assert page.loads == []
    assert page.handlers == []
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert json.loads(found["result.json"])["loadgen"]["schema"] == 1
    assert found["report.md"].splitlines()[2].startswith("**Measurement: sound")
    if kind == "ab":
        sides = [json.loads(found[f"result-{side}.json"]) for side in "ab"]
        assert sum(side["num_prompts"] for side in sides) == json.loads(found["result.json"])["num_prompts"]
    if plots_available():
        plotted(tmp_path, found["report.html"], PLOTTED[kind])


def plotted(folder: Path, page: str, names: set[str]) -> None:
    """As files and in the page, which refers to nothing that it lacks."""
    files = list((folder / "plots").glob("*.svg"))
    assert {path.stem for path in files} == names
    assert page.count("<svg") == 2 * len(names), "each for a wide page and for a phone"
    for path in files:
        ET.fromstring(path.read_text())
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(Page(page).ids)


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    found = reports(tmp_path, *hostile())
    page = Page(found["report.html"])
    assert (page.open, page.loads, page.handlers) == ([], [], [])
    assert not {"script", "img", "iframe", "a"} & set(page.tags)
    assert "<script src=http://evil.example/x.js>" in page.shown  # told as text
    lines = found["report.md"].splitlines()
    assert "\x1b" not in found["report.md"]
    assert sum(line.startswith("# ") for line in lines) == 1
    assert not re.search(r"(?<!\\)<(script|img)", re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", found["report.md"]))


def test_a_page_may_load_and_run_nothing() -> None:
    page = report_html.render(view(run_of(), summarise(run_of(), records(Load(requests=30)))))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", page)
    assert "@import" not in page


@given(st.text(max_size=60))
def test_any_text_stays_text_in_both_forms(text: str) -> None:
    rows = report_md.markdown_table(("", "x"), [[text, text]])
    assert len(rows) == 3
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", rows[2])) == 3
    assert "\n" not in rows[2]
    page = Page(report_html.render(view(run_of(text or "x"), summarise(run_of(), []))))
    assert page.open == []
    assert not {"script", "img", "a"} & set(page.tags)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("~76.8", "~76.8"),
        ("p99 ~76.8 ms", "p99 ~76.8 ms"),
        ("~~5~~", r"\~\~5\~\~"),
        ("a~5", r"a\~5"),
        ("~x~", r"\~x\~"),
    ],
)
def test_the_mark_of_a_small_sample_stays_readable_and_strikes_nothing_through(text: str, escaped: str) -> None:
    assert report_md.escape_markdown(text) == escaped


@given(st.text(alphabet="`ab ", min_size=1, max_size=20))
def test_code_ends_where_its_fence_says(text: str) -> None:
    fenced = report_md.code(text)
    fence = re.match(r"`+", fenced)
    assert fence is not None
    assert not re.search(rf"(?<!`){fence[0]}(?!`)", fenced[len(fence[0]) : -len(fence[0])])


def test_an_invalid_run_says_so_first_and_why() -> None:
    run = run_of(invalid=["the loop lagged 14 ms (p99), limit 5 ms"])
    shown = view(run, summarise(run, records(Load(requests=30))))
    first = "**Measurement: INVALID, do not use these figures: the loop lagged"
    assert report_md.render(shown).splitlines()[2].startswith(first)
    assert 'class="verdict bad">Measurement: INVALID' in report_html.render(shown)


def test_an_error_that_touches_some_figures_spares_the_others_in_words_and_in_tables() -> None:
    run = run_of(invalid=["requests were sent 5.04 ms late (p99), limit 5.00 ms"])
    run.touched = ["e2el_due", "queue", "ttft_due"]
    shown = view(run, summarise(run, records(Load(requests=30))))
    words = "Measurement: sound, but do not use TTFT from due and E2E from due: requests were sent 5.04 ms late"
    assert shown.measurement.startswith(words)
    assert f'class="verdict part">{words}' in report_html.render(shown)
    names = [row[0] for table in shown.tables if table.title.startswith("Latency") for row in table.rows]
    assert {"TTFT", "TTFT from due (unsound)", "E2E from due (unsound)", "E2E"} <= set(names)
    assert not any("unsound" in label for label, *_ in shown.headline)


def test_embeddings_are_not_blamed_for_having_no_output() -> None:
    embedded = [
        Record(
            index=index, id="", prompt="", due_ns=0, sent_ns=0, end_ns=9_000_000, stream=False, prompt_tokens=8,
            events=[Event(9_000_000, 9_000_000, 9_000_000, Kind.WHOLE)],
        )
        for index in range(50)
    ]  # fmt: skip
    shown = view(run_of(), summarise(run_of(), embedded))
    assert shown.warnings == []
    assert ("input", "no output by usage") in [(label, detail) for label, _, detail in shown.headline]
    for record in embedded:
        record.prompt_tokens = None
    assert "50 of 50 responses had no usage" in view(run_of(), summarise(run_of(), embedded)).warnings[0]


@needs(plots_available(), "matplotlib", extra("plots"))
@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e6), st.integers(3, 12))
def test_an_axis_has_round_labels_and_room_for_them(low: float, ratio: float, most: int) -> None:
    ticks = ticks_between(low, low * ratio, most)
    assert 1 <= len(ticks) <= most + 3
    assert ticks == sorted(set(ticks))
    assert min(ticks) > 0


def label_boxes(figure: Any) -> Iterator[list[Any]]:
    """Where the labels of each axis stand, in the order of the axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels = [tick.label1 for tick in shown if tick.label1.get_visible() and tick.label1.get_text()]
        yield [label.get_window_extent(renderer) for label in labels]


@needs(plots_available(), "matplotlib", extra("plots"))
@pytest.mark.parametrize("kind", ["run", "sweep", "ab"])
@pytest.mark.parametrize("sheet", [Sheet(), Sheet(narrow=True)], ids=["wide", "narrow"])
def test_labels_of_the_reports_plots_do_not_collide(kind: str, sheet: Sheet) -> None:
    seen = list(RAN[kind]())
    requests, summary = in_order(measure_records(seen)), summarise(run_of(), seen, {"ttft": 60.0})
    for drawing_ in drawing.drawings(run_of(), requests, summary, {}):
        with styled():
            figure = drawing_.draw(sheet)
        for boxes in label_boxes(figure) if figure is not None else ():
            for one, two in itertools.pairwise(boxes):
                assert not one.overlaps(two), drawing_.name


@pytest.mark.parametrize(
    ("failures", "more", "words"),
    [
        ([], {}, "Result: all 30 requests completed"),
        (["timeout"] * 29, {}, "Result: 29 of 30 requests FAILED (29 timeout)"),
        (["timeout", "status"], {}, "Result: 2 of 30 requests FAILED (1 timeout, 1 status)"),
        (["cancelled"], {}, "Result: all 29 requests completed, 1 cancelled"),
        (["cancelled"] * 30, {}, "Result: no request completed, 30 cancelled"),
        (["cancelled"], {"interrupted": True}, "Result: INTERRUPTED, until then all 29 requests completed"),
    ],
)
def test_a_sound_measurement_of_a_bad_result_does_not_read_as_good(
    failures: list[Any], more: dict[str, Any], words: str
) -> None:
    measured = list(records(Load(requests=30, fault=0, warmups=0)))
    for record, failure in zip(measured, failures, strict=False):
        record.failure = failure
    run = run_of()
    run.interrupted = more.get("interrupted", False)
    shown = view(run, summarise(run, measured))
    assert shown.measurement.startswith("Measurement: sound")
    assert shown.result.startswith(words)
    good = not {*failures} - {"cancelled"} and len(failures) < 30 and not more
    kind = "good" if good else "bad"
    assert f'class="verdict {kind}">Result: ' in report_html.render(shown)
    assert report_md.render(shown).splitlines()[4].startswith(f"**{words.split(',')[0]}")


def test_objectives_that_cannot_be_judged_are_not_0_percent() -> None:
    measured = list(records(Load(requests=30, fault=0, warmups=0)))
    for record in measured:
        record.completion_tokens = None
    shown = view(run_of(), summarise(run_of(), measured, {"ttft": 1e6, "tpot": 14.0}))
    why = "could not be judged: TPOT cannot be measured: the server reports no usage"
    assert shown.result == f"Result: all 30 requests completed; the objectives {why}"
    assert ("goodput", "…", "could not be judged") in shown.headline
    page = report_md.render(shown)
    assert f"{why}; ttft ≤ 1e+06 ms: 100 %" in page
    assert "0 % of 30" not in page


def test_responses_without_a_token_are_a_warning() -> None:
    measured = list(records(Load(requests=30, fault=0, warmups=0)))
    for record in measured[:3]:
        record.events = []
    warnings = view(run_of(), summarise(run_of(), measured)).warnings
    assert any(text.startswith("3 of 30 responses had no token: they are in no latency") for text in warnings)


def test_what_a_gateway_saved_is_in_the_headline() -> None:
    measured = list(records(Load(requests=60, shared=True, fault=0)))
    shown = {name: (value, more) for name, value, more in view(run_of(), summarise(run_of(), measured)).headline}
    answers = [record for record in measured if not record.warmup]
    shared = sum(r.completion_tokens or 0 for r in answers if r.shared in ("hit", "attached"))
    total = sum(r.completion_tokens or 0 for r in answers)
    assert shown["saved"] == (percent(shared / total), f"{shared:,} of {total:,} tokens were not generated again")
    plain = list(records(Load(requests=60)))
    assert "saved" not in [name for name, *_ in view(run_of(), summarise(run_of(), plain)).headline]


@pytest.mark.usefixtures("tables_only")
def test_markdown_tables_are_aligned_for_a_terminal(tmp_path: Path) -> None:
    found = reports(tmp_path, run_of(), records(Load(requests=120)))["report.md"]
    for block in re.findall(r"(?:^\|.*\n)+", found, re.MULTILINE):
        assert len({len(line) for line in block.splitlines()}) == 1


@pytest.mark.usefixtures("tables_only")
def test_what_the_first_bench_had_is_near_the_top(tmp_path: Path) -> None:
    head = "\n".join(reports(tmp_path, run_of(), records(Load(requests=120)))["report.md"].splitlines()[:12])
    for word in ("p50", "p95", "req/s", "tok/s", "errors"):
        assert word in head


def test_latency_is_told_of_what_was_generated_when_some_was_shared() -> None:
    run = run_of()
    found = report_md.render(view(run, summarise(run, records(Load(requests=200, shared=True)))))
    assert "Latency in ms, responses generated for the request" in found
    assert "of the responses were shared" in found


@pytest.mark.usefixtures("tables_only")
def test_without_matplotlib_the_page_has_its_tables_and_says_how_to_get_plots(tmp_path: Path) -> None:
    found = reports(tmp_path, run_of(), records(Load(requests=60)))
    assert "[plots]" in found["report.html"]
    assert "<svg" not in found["report.html"]
    assert "TTFT from due" in found["report.html"]
    assert not (tmp_path / "plots").exists()


@needs(plots_available(), "matplotlib", extra("plots"))
def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    one = reports(tmp_path / "one", run_of(), RAN["run"]())
    assert reports(tmp_path / "two", run_of(), RAN["run"]()) == one


# Numbers for people


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.00001, "0.0000"), (1.2, "1.20"), (45.67, "45.7"), (789.4, "789"),
     (12345.6, "12,346"), (float("inf"), "…"), (-1.5, "-1.50")],
)  # fmt: skip
def test_three_digits_are_written(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.9999, "> 99.9 %"), (0.0001, "0.01 %"), (0.123, "12.3 %")]
)
def test_none_and_all_are_said_only_of_none_and_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_cell_has_its_interval_and_a_change_its_sign() -> None:
    told = Quantile(p=50, value=3.0, interval=Bounds(-1.0, 4.0), needs=6, effective=9)
    assert cell(told) == "3.00 (-1.00–4.00)"
    assert cell(told, sign=True) == "+3.00 (−1.00 to +4.00)"
    assert cell(Quantile(p=99, needs=368, effective=9)) == cell(None) == "…"
    assert signed(-2) == "−2.00"
