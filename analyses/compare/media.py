"""Whether it matters which rows a sample's mean row is over: all tokens, or those that stand for its media."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from modegap.analyses.probe import ProbeResult
from modegap.analyses.result import Column, Json, NotebookRepr, Table, inline, jsonable

from .differences import Difference, accuracy_difference

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate

# What may differ between the two: where and how it was computed, not what.
_FREE = ("points", "labels", "pool", "n_jobs", "solver", "device", "retention", "calibration", "control")


@dataclass(frozen=True, slots=True)
class PoolingPair:
    """One hook point and label under both poolings.

    Attributes:
        point: hook point.
        label: label column.
        everything: accuracy with mean rows over all tokens; None where the label could not be probed.
        everything_std: standard deviation over seeds.
        media: accuracy with mean rows over the media tokens.
        media_std: standard deviation over seeds.
        difference: media minus all.
        message: why numbers are missing.
    """

    point: str
    label: str
    everything: float | None
    everything_std: float | None
    media: float | None
    media_std: float | None
    difference: Difference | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PoolingResult(NotebookRepr):
    """Probe accuracy with both poolings.

    Attributes:
        pairs: one entry a hook point and label that both results have.
        level: coverage of the intervals.
        certificate: of the probes over all tokens.
    """

    pairs: tuple[PoolingPair, ...]
    level: float
    certificate: Certificate

    def to_json(self) -> dict[str, Json]:
        """Strict JSON."""
        return {"analysis": "pooling", "level": self.level, "pairs": jsonable(self.pairs),
                "certificate": jsonable(self.certificate)}  # fmt: skip

    def table(self) -> Table:
        """The paper's Table 9: one row a label and hook point."""
        columns = (
            "label",
            "hook point",
            Column("all tokens", format=".3f"),
            Column("std", format=".3f"),
            Column("media tokens", format=".3f"),
            Column("std, media", format=".3f"),
            Column("difference", format="+.3f"),
            Column("low", format="+.3f"),
            Column("high", format="+.3f"),
        )
        rows = [
            (
                p.label,
                p.point,
                p.everything,
                p.everything_std,
                p.media,
                p.media_std,
                *((p.difference.value, p.difference.low, p.difference.high) if p.difference else (None,) * 3),
            )
            for p in self.pairs
        ]
        known = [p.difference for p in self.pairs if p.difference is not None]
        clear = sum(bool(d.clear) for d in known)
        paired = sum(d.paired for d in known)
        notes = [
            f"difference: media minus all tokens, {100 * self.level:g} % interval, on the same splits for {paired} of "
            f"{len(known)}; {clear} of {len(known)} intervals exclude 0 (not corrected for their number)",
            *dict.fromkeys(f"{p.label}: {p.message}" for p in self.pairs if p.message),
        ]
        return Table("Mean rows over all tokens and over the media tokens", columns, rows, notes)

    def figure(self) -> Any:
        """Differences with their intervals, one panel a hook point."""
        import altair as alt

        rows: list[dict[str, Any]] = [
            {
                "label": p.label,
                "point": p.point,
                "all": p.everything,
                "media": p.media,
                "difference": p.difference.value,
                "low": p.difference.low,
                "high": p.difference.high,
            }
            for p in self.pairs
            if p.difference is not None
        ]
        points = list(dict.fromkeys(row["point"] for row in rows))
        labels = list(dict.fromkeys(p.label for p in self.pairs))
        ends = [
            abs(row[key]) for row in rows for key in ("low", "high", "difference") if row[key] is not None
        ]
        top = max([*ends, 0.01]) * 1.1
        x: dict[str, Any] = {
            "title": "accuracy: media minus all tokens",
            "scale": alt.Scale(domain=[-top, top]),
            "axis": alt.Axis(format="+.2f", tickCount=5, grid=True),
        }
        y = alt.Y("label:N", sort=labels, title=None)
        tooltip = [
            alt.Tooltip("label:N"),
            alt.Tooltip("point:N", title="hook point"),
            alt.Tooltip("all:Q", title="all tokens", format=".3f"),
            alt.Tooltip("media:Q", title="media tokens", format=".3f"),
            alt.Tooltip("difference:Q", format="+.3f"),
            alt.Tooltip("low:Q", title="from", format="+.3f"),
            alt.Tooltip("high:Q", title="to", format="+.3f"),
        ]

        def panel(point: str) -> Any:
            base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="point", equal=point))
            zero = base.transform_aggregate(n="count()").transform_calculate(zero="0")
            layers = [
                zero.mark_rule(strokeDash=[5, 4]).encode(x=alt.X("zero:Q", **x)),
                base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **x), x2="high:Q", y=y),
                base.mark_circle(size=70, opacity=1).encode(
                    x=alt.X("difference:Q", **x), y=y, tooltip=tooltip
                ),
            ]
            height = max(24 * len(labels), 60)
            return alt.LayerChart(layer=layers, width=260, height=height, title=alt.Title(point))

        return alt.concat(*map(panel, points), data=inline(rows), columns=2)


def pooling(everything: ProbeResult, media: ProbeResult) -> PoolingResult:
    """The comparison of two probe results that differ in their pooling alone.

    Args:
        everything: probes with `pool` all.
        media: probes with `pool` modality, of the same store or of a second capture of the same samples.

    Raises:
        ValueError: other poolings, options that differ, or no hook point and label in common.
    """
    if (everything.pool, media.pool) != ("all", "modality"):
        raise ValueError(
            f"pools: got {everything.pool!r} and {media.pool!r}, expected probes with pool='all' and pool='modality'"
        )
    for field in fields(everything.config):
        one, other = (getattr(r.config, field.name) for r in (everything, media))
        if field.name not in _FREE and one != other:
            raise ValueError(
                f"the probes differ in {field.name}: {one!r} and {other!r}; run both with the same"
            )
    cells = {(cell.point, cell.label): cell for cell in media.cells}
    level = everything.config.level
    pairs = []
    for cell in everything.cells:
        other = cells.get((cell.point, cell.label))
        if other is None:
            continue
        difference = accuracy_difference(cell, other, level)
        std = cell.accuracy_std, other.accuracy_std
        message = cell.message or other.message
        pair = (cell.accuracy, std[0], other.accuracy, std[1])
        pairs.append(PoolingPair(cell.point, cell.label, *pair, difference, message))
    if not pairs:
        raise ValueError("the two results have no hook point and label in common; probe the same ones")
    return PoolingResult(tuple(pairs), level, everything.certificate)
