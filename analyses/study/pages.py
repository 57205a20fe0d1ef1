"""Studies as one report: what was found, then modes, probes and ablations, each across models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modegap.analyses.ablate import AblationResult
from modegap.analyses.align import Modes
from modegap.analyses.report import Headline, Item, Report, Section
from modegap.analyses.report.figures import mode_rows, mode_spectrum, probe_curves, probe_rows
from modegap.analyses.table import Table

from .decoder import decoder_findings, decoder_sections
from .intervention import intervention_findings, intervention_sections
from .model import Study


def study_report(
    studies: Sequence[Study],
    *,
    title: str = "Modality gap",
    summary: Sequence[str] = (),
    about: str = "",
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """The report of one or more models.

    Args:
        studies: one a model; their results decide which sections there are.
        title: the heading.
        summary: sentences before those that the results give.
        about: prose on what was studied.
        provenance: further groups of facts.

    Raises:
        ValueError: no studies, or two of the same name.
    """
    names = [study.name for study in studies]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a report needs studies of different names, got {names}")
    sections = [
        _examples(studies, about),
        *_modes(studies),
        *_probes(studies),
        *_ablations(studies),
        *decoder_sections(studies),
        *intervention_sections(studies),
        *_distances(studies),
        *_types(studies),
    ]
    origin = {
        f"{study.name}: {store}": facts for study in studies for store, facts in study.provenance.items()
    }
    return Report(
        title=title,
        summary=(*summary, *_findings(studies)),
        sections=[section for section in sections if section is not None],
        headlines=tuple(_headlines(studies)),
        provenance={**(provenance or {}), **origin},
    )


def _examples(studies: Sequence[Study], about: str) -> Section | None:
    galleries = [Item(s.gallery, name=f"examples-{s.name}") for s in studies if s.gallery is not None]
    if not galleries and not about:
        return None
    return Section("What was studied", "studied", about, galleries)


def _modes(studies: Sequence[Study]) -> Iterator[Section]:
    with_modes = [study for study in studies if study.modes]
    if not with_modes:
        return
    leading = [(study.name, study.modes[0]) for study in with_modes]
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
    overview = _stacked(
        "Mode alignment with the text", [(s.name, m.table()) for s in with_modes for m in s.modes]
    )
    yield Section(
        "Modes and their alignment with text", "modes", _MODES, [chart, Item(overview, name="alignment")]
    )
    for study in with_modes:
        yield Section(
            f"Modes of {study.name}",
            f"modes-{study.name}",
            "",
            [Item(modes, name=f"modes-{study.name}-{modes.point}", title=f"{study.name}: {modes.point} against "
                  f"{modes.text_point}") for modes in study.modes],
        )  # fmt: skip


def _probes(studies: Sequence[Study]) -> Iterator[Section]:
    found = [(study.name, study.probes) for study in studies if study.probes is not None]
    if not found:
        return
    rows = [row for name, probes in found for row in probe_rows(probes, name)]
    items: list[Any] = []
    if rows:
        items.append(
            Item(
                probe_curves(rows),
                name="probe-curves",
                title="What can be read linearly along the pipeline",
                caption=(
                    "Test accuracy of linear probes on pooled rows; bars: standard deviation over splits; "
                    "dashed: chance."
                ),
            )
        )
    items += [Item(probes, name=f"probes-{name}", title=f"{name}: probe accuracy") for name, probes in found]
    yield Section("Probes along the hook points", "probes", _PROBES, items)


def _ablations(studies: Sequence[Study]) -> Iterator[Section]:
    found = [(study.name, study.ablation) for study in studies if study.ablation is not None]
    if found:
        items = [
            Item(one, name=f"ablation-{name}", title=f"{name}: loss without the modes") for name, one in found
        ]
        items += [
            Item(one.sweep_table(), name=f"sweep-{name}", title=f"{name}: single modes removed")
            for name, one in found
            if one.sweep is not None
        ]
        yield Section("Causal ablation", "ablation", _ABLATION, items)


def _distances(studies: Sequence[Study]) -> Iterator[Section]:
    found = [(study.name, study.distances) for study in studies if study.distances is not None]
    if found:
        items = [
            Item(one, name=f"distances-{name}", title=f"{name}: modal against text law")
            for name, one in found
        ]
        items += [
            Item(one.class_table(), name=f"distances-{name}-classes") for name, one in found if one.classes
        ]
        yield Section("Distances between the laws", "distances", _DISTANCES, items)


def _types(studies: Sequence[Study]) -> Iterator[Section]:
    found = [(study.name, study.pertype) for study in studies if study.pertype is not None]
    if found:
        items = [
            Item(one, name=f"types-{name}", title=f"{name}: between-class scatter") for name, one in found
        ]
        yield Section("Which information lies where", "types", _TYPES, items)


def _stacked(title: str, tables: Sequence[tuple[str, Table]]) -> Table:
    """Tables of the same columns under each other, with the model's name in front."""
    first = tables[0][1]
    rows = [(name, *row) for name, table in tables for row in table.rows]
    return Table(
        title, ["model", *first.headers], rows, ("conditions and warnings stand with each result below",)
    )


def _headlines(studies: Sequence[Study]) -> Iterator[Headline]:
    quote: list[Callable[[Study], Headline | None]] = [_ms_card, _ablation_card]
    for card in quote:
        yield from (one for study in studies if (one := card(study)) is not None)


def _ms_card(study: Study) -> Headline | None:
    if not study.modes:
        return None
    modes = study.modes[0]
    return Headline(
        f"{study.name}: modality-specific modes",
        f"{len(modes.ms)} of {len(modes.considered)}",
        f"They carry {100 * modes.ms_variance:.0f} % of the considered variance at {modes.point}; "
        f"{len(modes.undecided)} modes have an interval across the threshold.",
    )


def _ablation_card(study: Study) -> Headline | None:
    if study.ablation is None or not study.ablation.conditions:
        return None
    first = study.ablation.conditions[0]
    change, level = first.change, study.ablation.config.level
    return Headline(
        f"{study.name}: loss without {first.name.upper()} modes",
        change.percent,
        f"{first.n_modes} modes removed at {study.ablation.point}; baseline "
        f"{study.ablation.baseline.mean():.3f} nats a token.",
        unit="%",
        low=change.percent_low,
        high=change.percent_high,
        interval=f"{100 * level:g} %, bootstrap over samples",
    )


def _findings(studies: Sequence[Study]) -> Iterator[str]:
    for study in studies:
        if study.modes:
            yield _mode_finding(study.name, study.modes[0])
        if study.ablation is not None:
            yield _ablation_finding(study.name, study.ablation)
        if study.probes is not None and (kept := study.probes.retention()):
            source, target = study.probes.config.retention
            said = ", ".join(f"{r.label} {r.ratio:.0f} %" for r in kept)
            yield f"**{study.name}**: probe accuracy kept from `{source}` to `{target}`: {said}."
        yield from decoder_findings(study)
        yield from intervention_findings(study)


def _ablation_finding(name: str, found: AblationResult) -> str:
    said = "; ".join(
        f"{c.name} ({c.n_modes} modes) {c.change.percent:+.1f} % "
        f"[{c.change.percent_low:+.1f}, {c.change.percent_high:+.1f}]"
        for c in found.conditions
    )
    if not found.conditions:
        shown = 0 if found.sweep is None else len(found.sweep.found())
        return f"**{name}**: removing one mode alone changes the loss for {shown} modes (q ≤ 0.05)."
    first = found.conditions[0]
    below = found.below_random(first.name)
    rank = (
        ""
        if below is None
        else (f" {100 * below:.0f} % of the random draws change the loss at most as much as {first.name}.")
    )
    return f"**{name}**: change of the decoder's loss without modes: {said}.{rank}"


def _mode_finding(name: str, modes: Modes) -> str:
    first = int(modes.considered[0])
    return (
        f"**{name}**: {len(modes.ms)} of {len(modes.considered)} considered modes at `{modes.point}` have ρ below "
        f"{modes.config.threshold:g} against `{modes.text_point}` and carry {100 * modes.ms_variance:.0f} % of the "
        f"considered variance; the largest mode has ρ = {modes.rho[first]:.3g}. The text's whole variance there is "
        f"{modes.trace_ratio:.2g} times the modal one, a factor that every ρ carries."
    )


_MODES = (
    "Modes are the eigenvectors of the covariance of the modal hidden states, in order of their variance λ. "
    "ρ compares the variance that text has along the same direction with λ: a mode with a small ρ is "
    "**modality-specific** (MS), the others are **text-aligned** (TA)."
)
_PROBES = (
    "Each label is predicted from the mean hidden state of a sample by l2 logistic regression, at every hook point. "
    "What a probe reads is present in the states; whether the decoder uses it is another question."
)
_DISTANCES = (
    "How far the distribution of the modal hidden states is from that of text in the same space. W1 and Gaussian W2 "
    "are in the units of the hidden states; W1 between two samples of one law is what sampling alone gives. CKA "
    "compares the geometry of the same samples, whatever the distance."
)
_TYPES = (
    "The scatter between the classes of each label, split over modality-specific and text-aligned modes. A label whose "
    "classes differ along modality-specific modes is information that text has no room for."
)
_ABLATION = (
    "The modes are projected out of the adapter's output and the decoder's cross-entropy on the target text is "
    "compared, sample by sample. A fall means that the decoder does better without them. Random draws of as many "
    "modes show what removing any such number does."
)
