"""Models that read the same texts with the same decoder, and differ in what comes before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.probe import Cell, ProbeResult, Retention, pipeline_order
from modegap.analyses.result import Column, Json, NotebookRepr, Table, inline, jsonable

from .differences import Difference, accuracy_difference
from .quantities import Number, numbers_of

if TYPE_CHECKING:
    from modegap.analyses.study import Study


@dataclass(frozen=True, slots=True)
class EncoderEntry:
    """One model and label.

    Attributes:
        model: name of the study.
        label: label column.
        accuracies: (hook point, accuracy, standard deviation over seeds), in the order of the pipeline.
        retention: what is left of it in the decoder.
        difference: accuracy at the last hook point less that of the first model.
        message: why numbers are missing.
    """

    model: str
    label: str
    accuracies: tuple[tuple[str, float | None, float | None], ...]
    retention: Retention | None
    difference: Difference | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class EncoderResult(NotebookRepr):
    """Probes and modes of models under one text law.

    Attributes:
        models: names, the first being the one that the others are compared with.
        text: hash of the text store that they share.
        points: hook points, in the order of the pipeline.
        entries: label by label, one a model.
        numbers: of each model, what was measured of its modes and its decoder.
        level: coverage of the intervals.
        retention: (from, to) hook points of the retention.
    """

    models: tuple[str, ...]
    text: str
    points: tuple[str, ...]
    entries: tuple[EncoderEntry, ...]
    numbers: tuple[tuple[str, tuple[Number, ...]], ...]
    level: float
    retention: tuple[str, str]

    def to_json(self) -> dict[str, Json]:
        """Strict JSON."""
        return {"analysis": "encoders", **{name: jsonable(getattr(self, name)) for name in self.__slots__}}

    def table(self) -> Table:
        """The paper's Table 10: one row a label and model."""
        columns: list[Column | str] = [
            "label",
            "model",
            *(Column(point, format=".3f") for point in self.points),
            Column("retention", "%", ".1f"),
            Column("low", "%", ".1f"),
            Column("high", "%", ".1f"),
            Column("above chance", "%", ".1f"),
            Column(f"difference to {self.models[0]}", format="+.3f"),
            Column("from", format="+.3f"),
            Column("to", format="+.3f"),
        ]
        rows = []
        for entry in self.entries:
            known = {point: accuracy for point, accuracy, _ in entry.accuracies}
            kept, off = entry.retention, entry.difference
            rows.append(
                (
                    entry.label,
                    entry.model,
                    *(known.get(point) for point in self.points),
                    *((kept.ratio, kept.low, kept.high, kept.above_chance) if kept else (None,) * 4),
                    *((off.value, off.low, off.high) if off else (None,) * 3),
                )
            )
        source, target = self.retention
        known_differences = [entry.difference for entry in self.entries if entry.difference is not None]
        paired = all(d.paired for d in known_differences)
        splits = "the same splits" if paired else "splits that differ where the labels do"
        notes = [
            f"test accuracy of linear probes; retention: accuracy at {target} over that at {source}; low, high, from, "
            f"to: {100 * self.level:g} % intervals over seeds",
            f"difference: accuracy at {self.points[-1]} less that of {self.models[0]}, on {splits}",
            f"the models are compared with the same texts under the same text model (store {self.text[:17]}); their "
            "own decoders may be others, or tuned differently",
            *dict.fromkeys(f"{e.model}, {e.label}: {e.message}" for e in self.entries if e.message),
        ]
        return Table("Models under one text law", columns, rows, notes)

    def number_table(self) -> Table:
        """One row a quantity, one column a model."""
        names = list(dict.fromkeys(number.title for _, numbers in self.numbers for number in numbers))
        known = {(model, number.title): number for model, numbers in self.numbers for number in numbers}
        rows = [
            (
                name,
                *(number.show() if (number := known.get((model, name))) else None for model in self.models),
            )
            for name in names
        ]
        notes = (f"in brackets: {100 * self.level:g} % intervals, or the range that undecided modes leave",)
        return Table("Their modes and decoders", ["quantity", *self.models], rows, notes)

    def tables(self) -> list[Table]:
        """The tables, in order."""
        return [self.table(), *([self.number_table()] if any(n for _, n in self.numbers) else [])]

    def figure(self) -> Any:
        """Retention of every label with its interval, one mark a model."""
        import altair as alt

        from modegap.analyses.report.figures.overview import series_scales

        rows = [
            {
                "model": e.model,
                "label": e.label,
                "retention": e.retention.ratio,
                "low": e.retention.low,
                "high": e.retention.high,
                "above": e.retention.above_chance,
            }
            for e in self.entries
            if e.retention is not None
        ]
        base = alt.Chart(inline(rows))
        labels = list(dict.fromkeys(e.label for e in self.entries))
        y = alt.Y("label:N", sort=labels, title=None)
        offset = alt.YOffset("model:N", sort=list(self.models))
        color = alt.Color("model:N", scale=series_scales(self.models)[0], title=None)
        axis = alt.Axis(grid=True, tickCount=6)
        x: dict[str, Any] = {"title": "accuracy retained in the decoder, %", "axis": axis,
                             "scale": alt.Scale(zero=False)}  # fmt: skip
        tooltip = [
            alt.Tooltip("model:N"),
            alt.Tooltip("label:N"),
            alt.Tooltip("retention:Q", title="retention, %", format=".1f"),
            alt.Tooltip("low:Q", title="from", format=".1f"),
            alt.Tooltip("high:Q", title="to", format=".1f"),
            alt.Tooltip("above:Q", title="above chance, %", format=".1f"),
        ]
        spans = base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", **x), x2="high:Q", y=y, yOffset=offset, color=color
        )
        dots = base.mark_circle(size=70, opacity=1).encode(
            x=alt.X("retention:Q", **x), y=y, yOffset=offset, color=color, tooltip=tooltip
        )
        height = max((12 * len(self.models) + 12) * len(labels), 60)
        return alt.layer(spans, dots).properties(width=560, height=height)


def encoders(studies: Sequence[Study]) -> list[EncoderResult]:
    """The groups of studies that share a data set and a text store, each compared label by label.

    Two studies belong together where their alignments used the same text rows, by content hash, so that one
    decoder read the same texts for both, and their probes the same labels.
    """
    groups: dict[tuple[str, str], list[Study]] = {}
    for study in studies:
        if study.modes and study.probes is not None:
            hashes = study.modes[0].certificate.store_hashes
            data = next((str(facts.get("dataset")) for facts in study.provenance.values()), "")
            if "text" in hashes:
                groups.setdefault((hashes["text"], data), []).append(study)
    return [_compare(text, group) for (text, _), group in groups.items() if len(group) > 1]


def _compare(text: str, studies: Sequence[Study]) -> EncoderResult:
    probes = {study.name: study.probes for study in studies if study.probes is not None}
    first = next(iter(probes.values()))
    points = sorted({point for one in probes.values() for point in one.points}, key=pipeline_order)
    labels = list(dict.fromkeys(label for one in probes.values() for label in one.labels))
    entries = [entry for label in labels for entry in _entries(label, probes, points)]
    numbers = tuple((study.name, tuple(numbers_of(study))) for study in studies)
    config = first.config
    names = tuple(probes)
    return EncoderResult(names, text, tuple(points), tuple(entries), numbers, config.level, config.retention)


def _entries(label: str, probes: dict[str, ProbeResult], points: Sequence[str]) -> Iterator[EncoderEntry]:
    found = {
        name: {cell.point: cell for cell in one.cells if cell.label == label} for name, one in probes.items()
    }
    reference: Cell | None = next(iter(found.values())).get(points[-1])
    for index, (name, cells) in enumerate(found.items()):
        if not cells:
            continue
        kept = next((r for r in probes[name].retention() if r.label == label), None)
        last = cells.get(points[-1])
        difference = None
        if index and reference is not None and last is not None:
            difference = accuracy_difference(reference, last, probes[name].config.level)
        accuracies = tuple((p, c.accuracy, c.accuracy_std) for p in points if (c := cells.get(p)) is not None)
        message = next((cell.message for cell in cells.values() if cell.message), "")
        yield EncoderEntry(name, label, accuracies, kept, difference, message)
