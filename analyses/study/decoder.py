"""The sections on what the decoder does with its input: sensitivity, swaps, GMI and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modegap.analyses.report import Item, Section
from modegap.analyses.report.figures import norm_curves, norm_rows

if TYPE_CHECKING:
    from .model import Study


def decoder_sections(studies: Sequence[Study]) -> Iterator[Section]:
    """One section a kind of experiment that some study has."""
    norms = [(study.name, study.lipschitz) for study in studies if study.lipschitz is not None]
    along = [(study.name, study.gradproj) for study in studies if study.gradproj is not None]
    items: list[Item] = []
    if len(norms) > 1:
        rows = [row for name, one in norms for row in norm_rows(one, name)]
        items.append(Item(norm_curves(rows), name="gradient-norms", title="Gradient norms of the models"))
    items += [Item(one, name=f"lipschitz-{name}", title=f"{name}: gradient norms") for name, one in norms]
    items += [
        Item(one, name=f"gradproj-{name}", title=f"{name}: gradients along modes") for name, one in along
    ]
    if items:
        yield Section("The decoder's sensitivity", "sensitivity", _SENSITIVITY, items)
    swaps = [
        Item(study.swap, name=f"swap-{study.name}", title=f"{study.name}: {study.swap.config.by} swapped")
        for study in studies
        if study.swap is not None
    ]
    if swaps:
        yield Section("Swapping a class's component", "swap", _SWAP, swaps)
    yield from _access(studies)


def _access(studies: Sequence[Study]) -> Iterator[Section]:
    items: list[Item] = []
    for study in studies:
        if study.gmi is None:
            continue
        items.append(
            Item(study.gmi, name=f"gmi-{study.name}", title=f"{study.name}: what the decoder can use")
        )
        if study.gmi.attributes:
            table = study.gmi.attribute_table()
            items.append(Item(table, name=f"access-{study.name}", title=f"{study.name}: labels"))
    if items:
        yield Section("What the decoder can use", "gmi", _ACCESS, items)
    found: list[Item] = []
    for study in studies:
        if study.bound is None:
            continue
        found.append(Item(study.bound, name=f"bound-{study.name}", title=f"{study.name}: bound on the gap"))
        found += [
            Item(table, name=f"bound-{study.name}-{number}", title=table.title)
            for number, table in enumerate(study.bound.tables()[1:], 2)
        ]
    if found:
        yield Section("The bounds", "bounds", _BOUNDS, found)


def decoder_findings(study: Study) -> Iterator[str]:
    """Sentences for the top of the report."""
    if study.lipschitz is not None:
        s = study.lipschitz.overall
        yield (
            f"**{study.name}**: L_log has mean {s.mean:.3g}, 95th percentile {s.p95:.3g} and maximum {s.max:.3g} over "
            f"{s.n} samples; D = {study.lipschitz.diameter.D:.3g}, D_eff = {study.lipschitz.diameter.D_eff:.3g}."
        )
    if study.gradproj is not None and study.gradproj.published.spearman is not None:
        c = study.gradproj.published
        yield (
            f"**{study.name}**: the decoder is {c.ratio.value:.3g} times as sensitive along text-aligned modes as "
            f"along modality-specific ones; rank correlation with ρ {c.spearman:.2f} (p = {c.p:.2g})."
        )
    if study.gmi is not None:
        yield from _access_findings(study)


def _access_findings(study: Study) -> Iterator[str]:
    assert study.gmi is not None
    said = "; ".join(
        f"{a.label} {a.information.value:.2f} held, {a.gmi.value:.2f} usable"
        for a in study.gmi.attributes
        if a.law == "modal" and a.information is not None and a.gmi is not None
    )
    if said:
        yield f"**{study.name}**: of the labels, in nats: {said}."


_SENSITIVITY = (
    "The gradient of the target's log-likelihood with respect to the adapter's output says how much a small change "
    "there can do. Its norm, sample by sample, is L_log; its projections on the modes say whether the decoder listens "
    "to text-aligned directions more than to modality-specific ones."
)
_SWAP = (
    "The mean component of a sample in a subspace is replaced by that of another class, while every position keeps its "
    "own residual. A decoder that does not use the subspace predicts the same."
)
_ACCESS = (
    "GMI is the information that a decoder with the wrong rule can still use. For a label it is compared with what a "
    "calibrated probe reads from the same rows: the difference is present and out of the decoder's reach."
)
_BOUNDS = (
    "Theorem 2 bounds the change of GMI between the two laws by the decoder's Lipschitz constant, the diameter of the "
    "representations and the transport distance of the laws; Theorem 3 the loss of a probe. Both stand beside what "
    "was measured."
)
