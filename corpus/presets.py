"""Published statistics of real traces, and the models that imitate them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from corpus.arrivals import Arrivals, OnOff, Renewal, Slotted, modulated
from corpus.blocks import Sharing
from corpus.lengths import Lengths, Lognormal, Quantiles


@dataclass(frozen=True, slots=True)
class Preset:
    """A trace's shape. `published` has its figures by the names of `corpus.table`; lengths are in tokens."""

    name: str
    source: str
    requests: int
    arrivals: Arrivals
    inputs: Quantiles
    outputs: Quantiles
    ln_input: tuple[float, float]
    ln_output: tuple[float, float]
    published: dict[str, float]
    sharing: Sharing | None = None
    duplicates: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def lengths(self, model: str) -> tuple[Lengths, Lengths]:
        """`quantiles` go through the published ones; `lognormal` has the published mu and sigma."""
        if model == "quantiles":
            return self.inputs, self.outputs
        return (
            Lognormal(*self.ln_input, longest=self.inputs.longest),
            Lognormal(*self.ln_output, longest=self.outputs.longest),
        )


def _lengths(side: str, of: Quantiles) -> dict[str, float]:
    return {f"{side} mean": of.mean, f"{side} p50": of.p50, f"{side} p90": of.p90, f"{side} p99": of.p99}


def _preset(
    name: str,
    source: str,
    requests: int,
    arrivals: Arrivals,
    inputs: Quantiles,
    outputs: Quantiles,
    logs: tuple[float, float, float, float],
    published: dict[str, float],
    **more: Sharing | float | tuple[str, ...],
) -> Preset:
    figures = published | _lengths("input", inputs) | _lengths("output", outputs)
    return Preset(name, source, requests, arrivals, inputs, outputs, logs[:2], logs[2:], figures, **more)  # type: ignore[arg-type]


_AZURE: Final = "Azure LLM inference traces 2023 (Microsoft, CC-BY): shape only"
_MOONCAKE: Final = "Mooncake traces (Kimi): shape only"

PRESETS: Final = {
    one.name: one
    for one in (
        _preset(
            "azure-conv-2023",
            _AZURE,
            19_366,
            modulated(5.5, 1.4, 3.9),
            Quantiles(1020, 2735, 4142, 1155, longest=14_050),
            Quantiles(129, 424, 601, 211, longest=1_000),
            (6.63, 0.99, 5.02, 0.86),
            {"rate /s": 5.5, "gap CV": 1.09, "dispersion 1 s": 1.4, "dispersion 10 s": 3.9},
        ),
        _preset(
            "azure-code-2023",
            _AZURE,
            8_819,
            OnOff(2.6, on=4.6, off=22.5, off_shape=0.35),
            Quantiles(1469, 5194, 7436, 2048, longest=7_437),
            Quantiles(13, 55, 252, 28, longest=1_000),
            (7.00, 1.36, 2.79, 0.85),
            {"rate /s": 2.6, "gap CV": 13.2, "dispersion 1 s": 13, "dispersion 10 s": 72},
            notes=(
                "bursts of 4.6 s between gamma pauses (22.5 s, shape 0.35), fitted to gap CV and dispersion;",
                "few long pauses decide them all, so they and the rate differ much from seed to seed",
                "the texts are prose: of code only the lengths and times are imitated",
            ),
        ),
        _preset(
            "mooncake-conversation",
            _MOONCAKE,
            12_031,
            Slotted(Renewal(3.4), slot=3.0),
            Quantiles(6909, 27_367, 85_401, 12_035, longest=126_000),
            Quantiles(350, 597, 1120, 343, longest=2_000),
            (8.74, 1.20, 5.34, 1.36),
            {"rate /s": 3.4, "prefix hits": 0.366, "top tenth": 0.75, "used once": 0.76, "duplicates": 0.010},
            sharing=Sharing(0.366, popular=0.1),
            duplicates=0.010,
            notes=(
                "the published times are on a grid of 3 s; here they are jittered within it, so of gaps below",
                "3 s nothing is known; --grid keeps the grid, which fires about ten requests at once",
            ),
        ),
        _preset(
            "mooncake-synthetic",
            _MOONCAKE,
            3_993,
            modulated(3.9, 1.1, 1.2),
            Quantiles(11_587, 38_615, 66_458, 15_325, longest=128_000),
            Quantiles(69, 389, 769, 149, longest=2_000),
            (7.98, 2.70, 3.92, 1.77),
            {
                "rate /s": 3.9,
                "gap CV": 1.01,
                "dispersion 1 s": 1.1,
                "dispersion 10 s": 1.2,
                "prefix hits": 0.64,
                "top tenth": 0.50,
                "duplicates": 0.053,
            },
            sharing=Sharing(0.64, candidates=64, popular=0.0, common=0),
            duplicates=0.053,
        ),
    )
}
