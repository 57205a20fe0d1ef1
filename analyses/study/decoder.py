"""The topics on what the decoder does with its input: sensitivity, swaps, GMI and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modegap.analyses.report import Item
from modegap.analyses.report.figures import norm_curves, norm_rows

from .model import Study
from .topics import Made, Topic, one, stacked, tables_of


def _sensitivity(study: Study) -> Made:
    return [
        *one("lipschitz", "gradient norms")(study),
        *one("gradproj", "gradients along modes")(study),
    ]


def _sensitivity_across(studies: Sequence[Study]) -> Made:
    norms = [(study.name, study.lipschitz) for study in studies if study.lipschitz is not None]
    items: Made = []
    if norms:
        rows = [row for name, found in norms for row in norm_rows(found, name)]
        items.append(Item(norm_curves(rows), name="gradient-norms", title="Gradient norms of the models"))
        tables = [(name, found.table()) for name, found in norms]
        items.append(Item(stacked("L_log of the models", tables), name="lipschitz-models"))
    along = [(study.name, study.gradproj.table()) for study in studies if study.gradproj is not None]
    if along:
        items.append(Item(stacked("Sensitivity along the modes", along), name="gradproj-models"))
    return items


def _access(study: Study) -> Made:
    if study.gmi is None:
        return []
    items = [Item(study.gmi, name=f"gmi-{study.name}", title=f"{study.name}: what the decoder can use")]
    if study.gmi.attributes:
        table = study.gmi.attribute_table()
        items.append(Item(table, name=f"access-{study.name}", title=f"{study.name}: labels"))
    return items


def _access_across(studies: Sequence[Study]) -> Made:
    found = [(study.name, study.gmi) for study in studies if study.gmi is not None]
    items = [Item(stacked("GMI under each law", [(n, g.table()) for n, g in found]), name="gmi-models")]
    labelled = [(name, gmi.attribute_table()) for name, gmi in found if gmi.attributes]
    if labelled:
        items.append(Item(stacked("What is held and what can be used", labelled), name="access-models"))
    return items


SENSITIVITY = Topic(
    "The decoder's sensitivity",
    "sensitivity",
    "The gradient of the target's log-likelihood with respect to the adapter's output says how much a small change "
    "there can do. Its norm, sample by sample, is L_log; its projections on the modes say whether the decoder listens "
    "to text-aligned directions more than to modality-specific ones.",
    _sensitivity,
    _sensitivity_across,
)
SWAP = Topic(
    "Swapping a class's component",
    "swap",
    "The mean component of a sample in a subspace is replaced by that of another class, while every position keeps its "
    "own residual. A decoder that does not use the subspace predicts the same.",
    lambda study: (
        [Item(study.swap, name=f"swap-{study.name}", title=f"{study.name}: {study.swap.config.by} swapped")]
        if study.swap is not None
        else []
    ),
    tables_of("swap", "Swaps"),
)
ACCESS = Topic(
    "What the decoder can use",
    "gmi",
    "GMI is the information that a decoder with the wrong rule can still use. For a label it is compared with what a "
    "calibrated probe reads from the same rows: the difference is present and out of the decoder's reach.",
    _access,
    _access_across,
)
BOUNDS = Topic(
    "The bounds",
    "bounds",
    "Theorem 2 bounds the change of GMI between the two laws by the decoder's Lipschitz constant, the diameter of the "
    "representations and the transport distance of the laws; Theorem 3 the loss of a probe. Both stand beside what "
    "was measured.",
    one("bound", "bound on the gap"),
    tables_of("bound", "Bounds on the gap"),
)


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
