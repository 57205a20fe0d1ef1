"""What a report says of each kind of result: once across models, and model by model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from modegap.analyses.compare import pooling
from modegap.analyses.report import Item
from modegap.analyses.report.figures import (
    change_rows,
    changes,
    mode_rows,
    mode_spectrum,
    probe_curves,
    probe_overview,
    probe_rows,
)
from modegap.analyses.table import Table

from .model import Study

Made = list[Item]


@dataclass(frozen=True, slots=True)
class Topic:
    """A kind of result.

    Attributes:
        title: heading.
        anchor: fragment of its link.
        prose: what is computed and how to read it.
        own: the items of one study; none where it has no such result.
        across: the items that show several studies at once; only studies with own items are given.
        alone: whether `across` is also shown of a single study.
    """

    title: str
    anchor: str
    prose: str
    own: Callable[[Study], Made]
    across: Callable[[Sequence[Study]], Made]
    alone: bool = False


def stacked(title: str, tables: Sequence[tuple[str, Table]]) -> Table:
    """Tables under each other, with the model's name in front; a column that one of them lacks stays empty there."""
    keyed = [(name, table, _keys(table)) for name, table in tables]
    columns = {
        key: column for _, table, keys in keyed for key, column in zip(keys, table.headers, strict=True)
    }
    rows: list[list[Any]] = []
    for name, table, keys in keyed:
        for row in table.rows:
            known = dict(zip(keys, row, strict=True))
            rows.append([name, *(known.get(key) for key in columns)])
    return Table(
        title,
        ["model", *columns.values()],
        rows,
        ("conditions and warnings stand with each model's results",),
    )


def _keys(table: Table) -> list[tuple[str, int]]:
    """What tells the columns of a table apart: several may be called `low`."""
    titles = [column.title for column in table.headers]
    return [(title, titles[:k].count(title)) for k, title in enumerate(titles)]


def one(field: str, what: str, name: str = "") -> Callable[[Study], Made]:
    """The items of a study's result: itself, and its further tables."""

    def own(study: Study) -> Made:
        result = getattr(study, field)
        if result is None:
            return []
        stem = f"{name or field}-{study.name}"
        further = result.tables()[1:] if hasattr(result, "tables") else []
        return [
            Item(result, name=stem, title=f"{study.name}: {what}"),
            *(Item(table, name=f"{stem}-{number}") for number, table in enumerate(further, 2)),
        ]

    return own


def tables_of(field: str, title: str) -> Callable[[Sequence[Study]], Made]:
    """The first tables of all studies' results as one."""

    def across(studies: Sequence[Study]) -> Made:
        found = [(study.name, getattr(study, field).table()) for study in studies]
        return [Item(stacked(title, found), name=f"{field}-models")]

    return across


def _modes(study: Study) -> Made:
    return [
        Item(
            modes,
            name=f"modes-{study.name}-{modes.point}",
            title=f"{study.name}: {modes.point} against {modes.text_point}",
        )
        for modes in study.modes
    ]


def _modes_across(studies: Sequence[Study]) -> Made:
    leading = [(study.name, study.modes[0]) for study in studies]
    threshold = leading[0][1].config.threshold
    rows = [row for name, modes in leading for row in mode_rows(modes, name)]
    chart = Item(
        mode_spectrum(rows, threshold=threshold),
        name="mode-spectrum",
        title="Variance and alignment of the modes",
        caption=(
            "Above: the variance λ along each mode of the modal hidden states. Below: ρ, the text's variance along "
            f"the same direction over λ. Modes with ρ below {threshold:g} vary far more between images or sounds than "
            "between texts; bars are intervals over groups of samples, for fixed modes."
        ),
    )
    found = [(study.name, modes.table()) for study in studies for modes in study.modes]
    return [chart, Item(stacked("Mode alignment with the text", found), name="alignment")]


def _probes(study: Study) -> Made:
    found = one("probes", "probe accuracy")(study)
    if study.probes is not None and study.probes.retention():
        found.append(Item(study.probes.retention_table(), name=f"retention-{study.name}"))
    if study.probes is not None and study.media_probes is not None:
        title = f"{study.name}: mean rows over all tokens and over the media tokens"
        try:
            found.append(
                Item(pooling(study.probes, study.media_probes), name=f"pooling-{study.name}", title=title)
            )
        except ValueError:  # probed with other options: shown by itself
            found += one("media_probes", "probe accuracy over the media tokens")(study)
    return found


def _probes_across(studies: Sequence[Study]) -> Made:
    rows = [row for study in studies if study.probes for row in probe_rows(study.probes, study.name)]
    if not rows:
        return []
    level = next(study.probes.config.level for study in studies if study.probes)
    bars = f"bars: {100 * level:g} % intervals; dashed: chance."
    items = [
        Item(
            probe_overview(rows),
            name="probe-overview",
            title="What can be read linearly along the pipeline, model by model",
            caption=f"Test accuracy of linear probes on pooled rows; {bars[:-1]} of the label of the same colour.",
        )
    ]
    if len(studies) > 1:
        items.append(
            Item(
                probe_curves(rows),
                name="probe-curves",
                title="The same, label by label",
                caption=f"Test accuracy of linear probes on pooled rows; {bars}",
            )
        )
        kept = [(study.name, study.probes.retention_table()) for study in studies if study.probes]
        items.append(Item(stacked("Retention in the decoder", kept), name="retention"))
    return items


def _ablation(study: Study) -> Made:
    found = study.ablation
    if found is None:
        return []
    items = [Item(found, name=f"ablation-{study.name}", title=f"{study.name}: loss without the modes")]
    if found.sweep is not None:
        title = f"{study.name}: single modes removed"
        items.append(Item(found.sweep_table(), name=f"sweep-{study.name}", title=title))
    return items


def _ablation_across(studies: Sequence[Study]) -> Made:
    rows = [row for study in studies if study.ablation for row in change_rows(study.ablation, study.name)]
    if not rows:
        return []
    level = next(study.ablation.config.level for study in studies if study.ablation)
    chart = Item(
        changes(rows),
        name="ablation-models-effect",
        title="Loss without the modes, model by model",
        caption=f"Change of the decoder's loss on the target text; bars: {100 * level:g} % bootstrap over samples.",
    )
    return [chart, *tables_of("ablation", "Causal ablation")(studies)]


def _distances_across(studies: Sequence[Study]) -> Made:
    return tables_of("distances", "Distances between the laws")(studies)


MODES = Topic(
    "Modes and their alignment with text",
    "modes",
    "Modes are the eigenvectors of the covariance of the modal hidden states, in order of their variance λ. "
    "ρ compares the variance that text has along the same direction with λ: a mode with a small ρ is "
    "**modality-specific** (MS), the others are **text-aligned** (TA).",
    _modes,
    _modes_across,
    alone=True,
)
PROBES = Topic(
    "Probes along the hook points",
    "probes",
    "Each label is predicted from the mean hidden state of a sample by l2 logistic regression, at every hook point. "
    "What a probe reads is present in the states; whether the decoder uses it is another question.",
    _probes,
    _probes_across,
)
ABLATION = Topic(
    "Causal ablation",
    "ablation",
    "The modes are projected out of the adapter's output and the decoder's cross-entropy on the target text is "
    "compared, sample by sample. A fall means that the decoder does better without them. Random draws of as many "
    "modes show what removing any such number does.",
    _ablation,
    _ablation_across,
)
DISTANCES = Topic(
    "Distances between the laws",
    "distances",
    "How far the distribution of the modal hidden states is from that of text in the same space. W1 and Gaussian W2 "
    "are in the units of the hidden states; W1 between two samples of one law is what sampling alone gives. CKA "
    "compares the geometry of the same samples, whatever the distance.",
    one("distances", "modal against text law"),
    _distances_across,
)
TYPES = Topic(
    "Which information lies where",
    "types",
    "The scatter between the classes of each label, split over modality-specific and text-aligned modes. A label whose "
    "classes differ along modality-specific modes is information that text has no room for.",
    one("pertype", "between-class scatter", "types"),
    tables_of("pertype", "Where the classes of each label differ"),
)


def present(topic: Topic, studies: Sequence[Study]) -> Iterator[tuple[Study, Made]]:
    """The studies with results of a topic, and their items."""
    for study in studies:
        items = topic.own(study)
        if items:
            yield study, items
