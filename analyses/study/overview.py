"""The models at a glance: their main numbers in one table, and the product L W1 against what is lost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from modegap.analyses.compare.quantities import numbers_of, product, transport
from modegap.analyses.probe import ProbeResult
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.report import Item, Section
from modegap.analyses.report.figures import degradation_scatter
from modegap.analyses.table import Table

from .model import Study

_SHOWN = (
    ("alignment", "first ρ"),
    ("alignment", "MS modes"),
    ("alignment", "MS variance"),
    ("ablation", "ms"),
    ("sensitivity", "L mean"),
    ("sensitivity", "W1"),
    ("sensitivity", "L W1"),
    ("gradients", "g_TA / g_MS"),
)
_PROSE = (
    "The main numbers of every model; each stands with its conditions in the sections below. In brackets: intervals, "
    "and for the modes the range that undecided ones leave."
)


def overview(studies: Sequence[Study]) -> Section | None:
    """The section on all models at once; None where they have nothing that one could line up."""
    items = [*_numbers(studies), *_scatter(studies)]
    return Section("Overview", "overview", _PROSE, items) if items else None


def _numbers(studies: Sequence[Study]) -> Iterator[Item]:
    known = {study.name: {(n.group, n.name): n for n in numbers_of(study)} for study in studies}
    columns = [key for key in _SHOWN if any(key in numbers for numbers in known.values())]
    kept = {study.name: _retained(study.probes) for study in studies}
    if not columns and not any(kept.values()):
        return
    rows = [
        (study.name, *(known[study.name][key].show() if key in known[study.name] else None for key in columns),
         kept[study.name])
        for study in studies
    ]  # fmt: skip
    titles = {(n.group, n.name): n.title for numbers in known.values() for n in numbers.values()}
    names = ["model", *(titles[key] for key in columns), "probe accuracy kept, %"]
    notes = (
        "probe accuracy kept: least to most over the labels, from the adapter to the end of the decoder",
    )
    yield Item(Table("The models at a glance", names, rows, notes), name="glance")


def _retained(probes: ProbeResult | None) -> str | None:
    kept = [r.ratio for r in probes.retention()] if probes is not None else []
    return f"{min(kept):.0f} to {max(kept):.0f}" if kept else None


def _scatter(studies: Sequence[Study]) -> Iterator[Item]:
    rows = [row for study in studies for row in degradation_rows(study)]
    if not rows:
        return
    points = dict.fromkeys(row["point"] for row in rows)
    means = {row["study"]: (row["lw1"], row["mean"]) for row in rows}
    caption = (
        f"Across: the mean gradient norm times the distance of the laws (W1 at {', '.join(points)}). Up: what probes "
        "lose between the adapter and the end of the decoder, (a - chance) / (1 - chance) at each; a small dot is a "
        "label, a large one the model's mean. The paper expects more loss to the right."
    )
    if len(means) > 2:
        from scipy.stats import spearmanr

        across, up = zip(*means.values(), strict=True)
        found: Any = spearmanr(list(across), list(up))
        if found.statistic == found.statistic:
            caption += f" Rank correlation of the means over {len(means)}: {found.statistic:+.2f}."
    title = "L W1 against what is lost"
    yield Item(degradation_scatter(rows), name="degradation", title=title, caption=caption)


def degradation_rows(study: Study) -> list[dict[str, Any]]:
    """One row a label that was probed at both ends: `study`, `label`, `lw1` with ends, `lost`, `mean`, `point`.

    W1 is taken at the adapter's output, where L_log is measured, or at the first hidden layer that was compared.
    """
    if study.lipschitz is None or study.distances is None or study.probes is None:
        return []
    points = [pair.point for pair in study.distances.pairs if pair.w1 is not None]
    point = "adapter_output" if "adapter_output" in points else next(iter(points), "")
    distance = transport(study, point) if point else None
    lost = dict(_lost(study.probes))
    if distance is None or not lost:
        return []
    s = study.lipschitz.overall
    found = product(Estimate(s.mean, s.mean_low, s.mean_high), distance)
    mean = statistics.fmean(lost.values())
    return [
        {"study": study.name, "label": label, "lw1": found.value, "low": found.low, "high": found.high, "lost": value,
         "mean": mean, "point": point}
        for label, value in lost.items()
    ]  # fmt: skip


def _lost(probes: ProbeResult) -> Iterator[tuple[str, float]]:
    source, target = probes.config.retention
    found = {(cell.label, cell.point): cell for cell in probes.cells}
    for label in probes.labels:
        scores = []
        for point in (source, target):
            cell = found.get((label, point))
            if cell is not None and cell.accuracy is not None and cell.chance is not None:
                scores.append((cell.accuracy - cell.chance) / (1 - cell.chance))
        if len(scores) == 2:
            yield label, scores[0] - scores[1]
