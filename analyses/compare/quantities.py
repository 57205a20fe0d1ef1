"""The numbers of a study that are compared with others: value, interval, and the law they were computed under."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.lora.outcome import BASE, LABEL
from modegap.analyses.replayed.intervals import Estimate

if TYPE_CHECKING:
    from modegap.analyses.align import Modes
    from modegap.analyses.lipschitz import LipschitzResult
    from modegap.analyses.lora import LoraResult
    from modegap.analyses.study import Study

TOP = 10
_TITLES = {
    ("ablation", "ms"): "loss without MS modes, %",
    ("ablation", "ta"): "loss without TA modes, %",
    ("ablation", "random"): "loss without random modes, %",
    ("alignment", "first ρ"): "ρ of the first mode",
    ("alignment", "MS variance"): "MS variance, %",
    ("sensitivity", "W1"): "W1 in the decoder",
}
_NAMED = {
    "swap": "loss after {} swapped, %",
    "lora": "right answers ({})",
    "lora_probes": "probe accuracy ({})",
}
LORA_POINT = "llm_final"


@dataclass(frozen=True, slots=True)
class Number:
    """A measured number.

    Attributes:
        group: kind of result, as the sections of the published numbers are called.
        name: quantity.
        found: the number with its interval.
        published_law: whether it was computed as the published scripts do.
        format: how it is printed.
    """

    group: str
    name: str
    found: Estimate
    published_law: bool
    format: str = ".3g"

    @property
    def title(self) -> str:
        """The quantity in words."""
        known = _NAMED.get(self.group, "{}").format(self.name)
        return _TITLES.get((self.group, self.name), known)

    def show(self) -> str:
        """`value [low, high]`."""
        e = self.found
        if e.low is None or e.high is None:
            return format(e.value, self.format)
        return f"{e.value:{self.format}} [{e.low:{self.format}}, {e.high:{self.format}}]"


def numbers_of(study: Study) -> Iterator[Number]:
    """What a study measured of its modes and its decoder, in the order of the report."""
    if study.modes:
        yield from _modes(study.modes[0])
    if study.ablation is not None:
        law = study.ablation.config.target == "paper"
        for condition in study.ablation.conditions:
            name = "random" if condition.name.startswith("random") else condition.name
            if name in ("ms", "ta", "random"):
                c = condition.change
                percent = Estimate(c.percent, c.percent_low, c.percent_high)
                yield Number("ablation", name, percent, law, "+.2f")
    if study.lipschitz is not None:
        yield from _norms(study.lipschitz)
    yield from _transport(study)
    if study.gradproj is not None:
        published, law = study.gradproj.published, study.gradproj.config.target == "paper"
        if math.isfinite(published.ratio.value):
            yield Number("gradients", "g_TA / g_MS", published.ratio, law)
        if published.spearman is not None:
            yield Number("gradients", "Spearman with ρ", Estimate(published.spearman), law, "+.2f")
    if study.swap is not None:
        law = study.swap.config.target == "paper"
        for one in study.swap.swapped:
            percent = Estimate(one.change.percent, one.change.percent_low, one.change.percent_high)
            yield Number("swap", one.name, percent, law, "+.2f")
    for trained in study.lora:
        yield from _intervention(trained)


def _intervention(result: LoraResult) -> Iterator[Number]:
    """Table 3, on held-out samples: written answers and probes at the decoder's end, without and with the LoRA.

    The control is none of the published numbers. No switch repeats the published law, whose probes have seen the
    samples that the decoder was trained on.
    """
    for name, when in ((BASE, "before"), (LABEL, "after")):
        arm = result.arm(name)
        if arm.written is not None:
            yield Number("lora", f"{result.label} LoRA, {when}", arm.written.accuracy, False)
        for cell in arm.probes.cells:
            if cell.point == LORA_POINT and cell.accuracy is not None:
                ends = cell.interval(arm.probes.config.level)
                found = Estimate(cell.accuracy, *ends) if ends else Estimate(cell.accuracy)
                yield Number("lora_probes", f"{result.label} LoRA, {cell.label} {when}", found, False)


def _modes(modes: Modes) -> Iterator[Number]:
    """Table 11; the range of a count is what the modes leave open whose interval holds the threshold."""
    law, threshold = modes.config.law == "paper", modes.config.threshold
    first = int(modes.considered[0])
    rho = estimate(float(modes.rho[first]), float(modes.rho_low[first]), float(modes.rho_high[first]))
    yield Number("alignment", "first ρ", rho, law)
    yield Number("alignment", f"mean ρ of top {TOP}", Estimate(modes.mean_rho(TOP)), law)
    count, share = Estimate(float(len(modes.ms))), Estimate(100 * modes.ms_variance)
    if modes.groups:
        surely = modes.considered[modes.rho_high[modes.considered] < threshold]
        perhaps = modes.considered[modes.rho_low[modes.considered] < threshold]
        count = Estimate(count.value, float(len(surely)), float(len(perhaps)))
        share = Estimate(share.value, 100 * modes.share(surely), 100 * modes.share(perhaps))
    yield Number("alignment", "MS modes", count, law, ".0f")
    yield Number("alignment", "MS variance", share, law, ".1f")


def _norms(norms: LipschitzResult) -> Iterator[Number]:
    law, s = norms.config.target == "paper", norms.overall
    yield Number("sensitivity", "L mean", Estimate(s.mean, s.mean_low, s.mean_high), law)
    yield Number("sensitivity", "L median", Estimate(s.median), law)
    yield Number("sensitivity", "L p95", Estimate(s.p95, s.p95_low, s.p95_high), law)
    yield Number("sensitivity", "D", Estimate(norms.diameter.D), law)


def _transport(study: Study) -> Iterator[Number]:
    """W1 at the first hidden layer that was measured, as in Table 8, and its product with L."""
    if study.distances is None:
        return
    points = [pair.point for pair in study.distances.pairs if pair.point.startswith("llm_hidden_")]
    distance = transport(study, points[0]) if points else None
    if distance is None:
        return
    law = study.distances.config.law == "paper"
    yield Number("sensitivity", "W1", distance, law)
    if study.lipschitz is not None:
        s = study.lipschitz.overall
        found = product(Estimate(s.mean, s.mean_low, s.mean_high), distance)
        yield Number("sensitivity", "L W1", found, law and study.lipschitz.config.target == "paper")


def transport(study: Study, point: str) -> Estimate | None:
    """W1 between the laws at a hook point; None where it was not measured."""
    for pair in study.distances.pairs if study.distances is not None else ():
        if pair.point == point and pair.w1 is not None:
            return estimate(pair.w1.value, pair.w1.low, pair.w1.high)
    return None


def product(first: Estimate, second: Estimate) -> Estimate:
    """The product of two independent positive numbers: relative half-widths add up in quadrature."""
    value = first.value * second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value)
    down = math.hypot(1 - first.low / first.value, 1 - second.low / second.value)
    up = math.hypot(first.high / first.value - 1, second.high / second.value - 1)
    return Estimate(value, value * max(1 - down, 0.0), value * (1 + up))


def estimate(value: float, low: float, high: float) -> Estimate:
    """An estimate whose interval may be NaN, for none."""
    known = math.isfinite(low) and math.isfinite(high)
    return Estimate(value, low, high) if known else Estimate(value)
