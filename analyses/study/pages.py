"""Studies as one report: what was found, then the models side by side, then each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modegap.analyses.compare import beside_published, encoders
from modegap.analyses.report import Item, Report, Section
from modegap.analyses.report.text import slug

from .decoder import ACCESS, BOUNDS, SENSITIVITY, SWAP
from .findings import findings, headlines
from .intervention import INTERVENTION
from .model import Study
from .overview import overview
from .topics import ABLATION, DISTANCES, MODES, PROBES, TYPES, present

TOPICS = (MODES, PROBES, ABLATION, SENSITIVITY, SWAP, ACCESS, INTERVENTION, BOUNDS, DISTANCES, TYPES)
_CARDED = 2  # models whose numbers stand on top; of more, the overview has them
_STEM = 40  # characters of a name in a link


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
    several, carded = len(studies) > 1, len(studies) <= _CARDED
    sections = [
        _examples(studies, about),
        overview(studies) if several else None,
        _published(studies),
        _encoders(studies),
        *_topics(studies),
        *(_models(studies, told=carded) if several else ()),
    ]
    origin = {
        f"{study.name}: {store}": facts for study in studies for store, facts in study.provenance.items()
    }
    return Report(
        title=title,
        summary=(*summary, *(findings(studies) if carded else ())),
        sections=[section for section in sections if section is not None],
        headlines=tuple(headlines(studies)) if carded else (),
        provenance={**(provenance or {}), **origin},
    )


def _examples(studies: Sequence[Study], about: str) -> Section | None:
    galleries = [Item(s.gallery, name=f"examples-{s.name}") for s in studies if s.gallery is not None]
    if not galleries and not about:
        return None
    return Section("What was studied", "studied", about, galleries)


def _topics(studies: Sequence[Study]) -> Iterator[Section]:
    """One section a topic: of several studies what they show together, of a single one all there is."""
    for topic in TOPICS:
        found = list(present(topic, studies))
        if not found:
            continue
        together = topic.across([study for study, _ in found]) if len(studies) > 1 or topic.alone else []
        own = found[0][1] if len(studies) == 1 else []
        yield Section(topic.title, topic.anchor, topic.prose, [*together, *own])


def _models(studies: Sequence[Study], *, told: bool) -> Iterator[Section]:
    """One section a study, with a part for every topic; `told`: its findings stand at the top of the report."""
    stems = [f"model-{slug(study.name)[:_STEM]}" for study in studies]
    for number, (study, stem) in enumerate(zip(studies, stems, strict=True), 1):
        anchor = stem if stems.count(stem) == 1 else f"{stem}-{number}"
        parts = [
            Section(topic.title, f"{anchor}-{topic.anchor}", "", items)
            for topic in TOPICS
            for _, items in present(topic, [study])
        ]
        if parts:
            lead = f"**{study.name}**: "
            said = [] if told else [_sentence(text.removeprefix(lead)) for text in findings([study])]
            yield Section(study.name, anchor, "\n\n".join(said), parts=parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _published(studies: Sequence[Study]) -> Section | None:
    found = beside_published(studies)
    if found is None:
        return None
    counts = found.counts()
    prose = (
        f"Of {len(found.rows)} numbers that were published for the same models and data sets, {counts['agrees']} "
        f"agree, {counts['differs']} differ and {counts['not judged']} have no interval to judge by."
    )
    item = Item(
        found,
        name="published",
        title="Differences to the published numbers",
        caption="Shaded: within what both intervals allow. Differences beyond 5 are drawn at the edge.",
    )
    return Section("Beside the published numbers", "published", prose, [item])


def _encoders(studies: Sequence[Study]) -> Section | None:
    items = []
    for number, found in enumerate(encoders(studies), 1):
        stem = "encoders" if number == 1 else f"encoders-{number}"
        title = f"What the decoder keeps: {', '.join(found.models)}"
        items += [
            Item(found, name=stem, title=title),
            *(Item(table, name=f"{stem}-numbers") for table in found.tables()[1:]),
        ]
    prose = (
        "Models that are compared with the same texts under the same text model: what differs is the encoder and the "
        "adapter, and how the decoder was tuned to them."
    )
    return Section("Encoders under one text law", "encoders", prose, items) if items else None
