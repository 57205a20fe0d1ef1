"""Measured numbers beside the published ones: do they agree, as far as the intervals of both can tell?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modegap.analyses.probe import ProbeResult
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.result import Column, Json, NotebookRepr, Table, inline, jsonable

from .paper import Published, published, source, system_of, tolerances
from .quantities import Number, numbers_of

if TYPE_CHECKING:
    from modegap.analyses.study import Study

Verdict = Literal["agrees", "differs", "not judged"]
VERDICTS: tuple[Verdict, ...] = ("agrees", "differs", "not judged")
_PROBES = {"probes": "all", "media_probes": "modality"}
_TITLES = {
    "probes": "probe accuracy",
    "media_probes": "probe accuracy, media tokens",
    "retention": "retention above chance, %",
    "ablation": "change of loss without modes, %",
    "swap": "change of loss after a swap, %",
    "alignment": "",
    "sensitivity": "",
    "gradients": "",
    "lora": "right answers, LoRA",
    "lora_probes": "probe accuracy, LoRA",
}
_LORA = ("lora", "lora_probes")


@dataclass(frozen=True, slots=True)
class Beside:
    """A measured number beside the published one.

    Attributes:
        study: name of the study.
        published: the published number.
        found: ours, with its interval.
        published_law: whether ours was computed as the published scripts do.
        verdict: `agrees` where the difference is within both intervals in quadrature, `differs` where it is not, `not
            judged` where neither side has an interval.
    """

    study: str
    published: Published
    found: Estimate
    published_law: bool
    verdict: Verdict

    @property
    def quantity(self) -> str:
        """What is compared, in words."""
        p, title = self.published, _TITLES[self.published.group]
        where = f" at {p.point}" if p.point else ""
        return f"{title}: {p.name}{where}" if title else p.name

    @property
    def deviation(self) -> float | None:
        """(ours - published) over what the intervals allow: within -1 and 1 is agreement; None where not judged."""
        room = allowance(self.found, self.published)
        return None if room is None else (self.found.value - self.published.value) / room


@dataclass(frozen=True, slots=True)
class PublishedResult(NotebookRepr):
    """Every number of some studies that was published for the same model and data set.

    Attributes:
        rows: one entry a number.
        missing: numbers published for these models and data sets that the studies do not have.
    """

    rows: tuple[Beside, ...]
    missing: int

    def counts(self) -> dict[Verdict, int]:
        """How many rows have each verdict."""
        found = Counter(row.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def to_json(self) -> dict[str, Json]:
        """Strict JSON."""
        rows = [{**_object(row), "quantity": row.quantity, "deviation": row.deviation} for row in self.rows]
        return {
            "analysis": "published",
            "source": source(),
            "counts": jsonable(self.counts()),
            "missing": self.missing,
            "rows": jsonable(rows),
        }

    def table(self) -> Table:
        """One row a number."""
        columns = (
            "study",
            "verdict",
            "quantity",
            "of",
            "hook point",
            Column("published", format=".4g"),
            Column("±", format=".2g"),
            Column("ours", format=".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
            Column("allowed", format=".2g"),
            "our law",
            "± is",
            "printed in",
        )
        rows = [
            (
                row.study,
                f"{_MARKS[row.verdict]} {row.verdict}",
                _TITLES[row.published.group] or row.published.name,
                row.published.name if _TITLES[row.published.group] else None,
                row.published.point or None,
                row.published.value,
                row.published.half,
                row.found.value,
                row.found.low,
                row.found.high,
                allowance(row.found, row.published),
                "paper" if row.published_law else "default",
                row.published.basis,
                row.published.table,
            )
            for row in self.rows
        ]
        return Table("Beside the published numbers", columns, rows, self.notes())

    def notes(self) -> tuple[str, ...]:
        """How the verdicts come about."""
        counts = self.counts()
        lora = any(row.published.group in _LORA for row in self.rows)
        departing = sum(
            row.verdict == "differs" and not row.published_law and row.published.group not in _LORA
            for row in self.rows
        )
        notes = [
            f"published: {source()}",
            "agrees: the difference is within what our interval and the published one allow in quadrature (allowed: a "
            "wide one makes agreement easy). The published interval is that of 95 % over five seeds (seeds), what the "
            "authors' check of a repeated run allows (tolerance; "
            f"{tolerances()}), or half a unit of the last digit (digits); without an interval on our side a number "
            "with digits alone is not judged",
            "intervals of one number at a time: of many that agree in truth, about one in twenty differs",
        ]
        if departing:
            notes.append(
                f"{departing} of the {counts['differs']} that differ were computed under the default law, which "
                "departs from the published scripts on purpose; law=paper and target=paper repeat them"
            )
        if lora:
            notes.append(
                "LoRA: ours are of samples that no training saw. The published training stopped by the samples its "
                "answers were counted on, and the published probes were fitted to all samples, those that the decoder "
                "was trained on too: no switch repeats that. A probe of many classes reads less from fewer samples"
            )
        if self.missing:
            notes.append(
                f"{self.missing} further published numbers of these models and data sets were not measured here"
            )
        return tuple(notes)

    def figure(self) -> Any:
        """Deviation of every judged number in units of what the intervals allow, one line a quantity."""
        import altair as alt

        rows: list[dict[str, Any]] = [
            {
                "study": row.study,
                "quantity": row.quantity,
                "group": _TITLES[row.published.group] or row.quantity,
                "published": row.published.value,
                "ours": row.found.value,
                "low": row.found.low,
                "high": row.found.high,
                "deviation": deviation,
                "drawn": math.copysign(min(abs(deviation), _EDGE), deviation),
                "verdict": row.verdict,
                "law": "paper" if row.published_law else "default",
            }
            for row in self.rows
            if (deviation := row.deviation) is not None
        ]
        groups = list(dict.fromkeys(row["group"] for row in rows))
        base = alt.Chart(inline(rows))
        room = base.transform_aggregate(n="count()").transform_calculate(low="-1", high="1")
        scale = alt.Scale(domain=[-_EDGE, _EDGE])
        axis = alt.Axis(grid=True, values=list(range(-_EDGE, _EDGE + 1)))
        x: dict[str, Any] = {
            "title": "(ours - published) / what the intervals allow", "scale": scale, "axis": axis}  # fmt: skip
        band = room.mark_rect(opacity=0.12).encode(x=alt.X("low:Q", **x), x2="high:Q")
        dots = base.mark_point(filled=True, size=60, opacity=0.8).encode(
            x=alt.X("drawn:Q", **x),
            y=alt.Y("group:N", sort=groups, title=None, axis=alt.Axis(labelLimit=240, grid=True)),
            color=alt.Color("verdict:N", scale=alt.Scale(domain=["differs", "agrees"]), title=None),
            shape=alt.Shape(
                "verdict:N",
                scale=alt.Scale(domain=["differs", "agrees"], range=["diamond", "circle"]),
                title=None,
            ),
            tooltip=[
                alt.Tooltip("study:N"),
                alt.Tooltip("quantity:N"),
                alt.Tooltip("published:Q", format=".4g"),
                alt.Tooltip("ours:Q", format=".4g"),
                alt.Tooltip("low:Q", title="from", format=".4g"),
                alt.Tooltip("high:Q", title="to", format=".4g"),
                alt.Tooltip("deviation:Q", format="+.2f"),
                alt.Tooltip("law:N"),
            ],
        )
        return alt.layer(band, dots).properties(width=560, height=28 * max(len(groups), 2) + 20)


_MARKS: dict[Verdict, str] = {"agrees": "✓", "differs": "✗", "not judged": "·"}
_EDGE = 5  # deviations beyond are drawn at the edge; the tooltip has the value


def beside_published(studies: Sequence[Study]) -> PublishedResult | None:
    """The studies' numbers beside the published ones; None where none was published for their models and data.

    A study is matched by its store's provenance: model id and data set. Hook points and labels are matched by name.
    """
    rows: list[Beside] = []
    missing = 0
    for study in studies:
        system = system_of(study)
        if system is None:
            continue
        known = list(numbers_of(study))
        for number in published():
            if (number.system, number.dataset) != system:
                continue
            found = _measured(study, known, number)
            if found is None:
                missing += 1
                continue
            verdict = judge(found.found, number)
            rows.append(Beside(study.name, number, found.found, found.published_law, verdict))
    return PublishedResult(tuple(rows), missing) if rows else None


def judge(found: Estimate, known: Published) -> Verdict:
    """Whether a number agrees with a published one, by the intervals of both."""
    room = allowance(found, known)
    if room is None:
        return "not judged"
    return "agrees" if abs(found.value - known.value) <= room else "differs"


def allowance(found: Estimate, known: Published) -> float | None:
    """The difference that both intervals allow: our end on the published number's side and theirs, in quadrature."""
    if found.low is None or found.high is None:
        return None if known.basis == "digits" else known.half
    ours = found.high - found.value if known.value > found.value else found.value - found.low
    return math.hypot(ours, known.half)


def _measured(study: Study, known: Sequence[Number], number: Published) -> Number | None:
    if number.group in _PROBES:
        return _probed(study, number, _PROBES[number.group])
    if number.group == "retention":
        return _retained(study, number)
    return next((n for n in known if (n.group, n.name) == (number.group, number.name)), None)


def _probed(study: Study, number: Published, pool: str) -> Number | None:
    for probes in _all_probes(study):
        if probes.pool != pool:
            continue
        for cell in probes.cells:
            if (cell.label, cell.point) == (number.name, number.point) and cell.accuracy is not None:
                ends = cell.interval(probes.config.level)
                found = Estimate(cell.accuracy, *ends) if ends else Estimate(cell.accuracy)
                return Number(number.group, number.name, found, probes.config.law == "paper")
    return None


def _retained(study: Study, number: Published) -> Number | None:
    if study.probes is None or study.probes.pool != "all":
        return None
    for kept in study.probes.retention():
        if kept.label == number.name and kept.above_chance is not None:
            found = Estimate(kept.above_chance, kept.above_low, kept.above_high)
            return Number("retention", kept.label, found, study.probes.config.law == "paper")
    return None


def _all_probes(study: Study) -> Iterator[ProbeResult]:
    yield from (one for one in (study.probes, study.media_probes) if one is not None)


def _object(row: Beside) -> dict[str, Json]:
    found = jsonable(row)
    assert isinstance(found, dict)
    return found
