"""What a report says first: cards with one number each, and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from modegap.analyses.ablate import AblationResult
from modegap.analyses.align import Modes
from modegap.analyses.report import Headline

from .decoder import decoder_findings
from .intervention import intervention_findings
from .model import Study


def headlines(studies: Sequence[Study]) -> Iterator[Headline]:
    """One card a number and study."""
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


def findings(studies: Sequence[Study]) -> Iterator[str]:
    """Sentences, study by study."""
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
