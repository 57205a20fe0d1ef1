"""Forced choice: the decoder scores every choice, and writes one of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.gmi.compute import accessible
from modegap.analyses.gmi.config import GmiConfig
from modegap.analyses.gmi.information import Information, split_information
from modegap.analyses.gmi.scores import label_contributions
from modegap.analyses.lipschitz.diameter import mean_rows
from modegap.analyses.probe.labels import LabelProblem, categories, usable
from modegap.analyses.replayed.intervals import mean_interval
from modegap.engine.errors import EngineError
from modegap.engine.replay import Replay, ReplaySource, cross_scores, greedy, open_source

from .config import LoraConfig
from .outcome import Asked, Written
from .task import Task, answers_of

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel
    from modegap.stores import ActivationStore

Float = NDArray[np.float64]
Int = NDArray[np.int64]
_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A label as it is asked for; the same for every decoder.

    Attributes:
        label: label column.
        question: the prompt.
        names: its values.
        codes: each sample's, int64 [n].
        answers: token ids of each value.
        source: the samples with the question.
        known: what a probe of the adapter's rows knows of each.
        notes: who was left out.
    """

    label: str
    question: str
    names: tuple[str, ...]
    codes: Int
    answers: list[Int]
    source: ReplaySource
    known: Information
    notes: tuple[str, ...]


def choices_of(
    loaded: LoadedModel, store: ActivationStore, held_out: ActivationStore, task: Task, config: LoraConfig
) -> tuple[list[Choice], dict[str, str]]:
    """The labels that can be asked for on the held-out samples, and why the others cannot.

    The probe that bounds I(Z;S) is fitted to the adapter's rows of the samples that the decoder is trained on: what
    the decoder may use of the label, the probe may.
    """
    found, refused = [], {}
    for label in task.labels:
        try:
            found.append(_choice(loaded, store, held_out, label, task, config))
        except (LabelProblem, EngineError) as problem:
            refused[label] = str(problem)
    return found, refused


def _choice(
    loaded: LoadedModel,
    store: ActivationStore,
    held_out: ActivationStore,
    label: str,
    task: Task,
    config: LoraConfig,
) -> Choice:
    values = held_out.labels[label].values
    all_names = task.choices if label == task.label else categories(values).names
    question = config.ask(label, all_names)
    source = open_source(loaded, held_out, target_label=label, prompt=question)
    classes = categories(source.labels[label])
    keep, codes, notes = usable(classes, 1 / _FOLDS)
    names = tuple(classes.names[code] for code in np.unique(classes.codes[keep]))
    source = source.subset(keep.tolist(), "its class is too small")
    known = _known(store, held_out, source, label, names, codes, task, config)
    answers = answers_of(loaded, [config.say(name) for name in names], task.end)
    return Choice(label, question, names, codes, answers, source, known, notes)


def _known(
    store: ActivationStore,
    held_out: ActivationStore,
    source: ReplaySource,
    label: str,
    names: Sequence[str],
    codes: Int,
    task: Task,
    config: LoraConfig,
) -> Information:
    """What a probe fitted to the training and validation samples knows of the held-out ones."""
    number = {name: code for code, name in enumerate(names)}
    at = {name: index for index, name in enumerate(store.samples)}
    column = store.labels[label].values
    seen = [at[name] for name in (*task.split.train, *task.split.validation)]
    seen = [index for index in seen if str(column[index]) in number]
    fitted = np.array([number[str(column[index])] for index in seen], dtype=np.int64)
    if len(np.unique(fitted)) < 2 or np.bincount(fitted).min() < 2:
        raise LabelProblem("fewer than two classes with two samples each among those trained on")
    x = np.concatenate(
        [
            mean_rows(store, source.point, seen),
            mean_rows(held_out, source.point, [item.index for item in source.items]),
        ]
    )
    groups = None
    if config.group is not None and config.group != label:
        inside = categories(store.labels[config.group].values).codes[seen]
        groups = np.concatenate([inside, np.full(len(codes), -1)])
    return split_information(
        x,
        np.concatenate([fitted, codes]),
        np.arange(len(seen)),
        np.arange(len(seen), len(x)),
        folds=_FOLDS,
        C=1.0,
        seed=config.seed,
        groups=groups,
    )


def ask(loaded: LoadedModel, choice: Choice, config: LoraConfig) -> Asked:
    """Which choice the decoder holds most probable for every sample, and what it can use of the label."""
    replay = Replay(loaded, choice.source, batch_size=config.batch_size)
    total = config.score == "total"
    scores = np.stack(cross_scores(replay, [choice.answers] * len(choice.source), total=total))
    options = GmiConfig(draws=config.draws, level=config.level, seed=config.seed)
    access = accessible(
        "modal", choice.label, choice.names, choice.codes, scores, choice.known, options, choice.notes
    )
    prior = np.bincount(choice.codes, minlength=len(choice.names)) / len(choice.codes)
    assert access.scale is not None
    correct = (scores.argmax(axis=1) == choice.codes).astype(np.float64)
    return Asked(
        label=choice.label,
        question=choice.question,
        accuracy=mean_interval(correct, draws=config.draws, level=config.level, seed=config.seed),
        chance=1 / len(choice.names),
        access=access,
        ids=choice.source.ids,
        correct=correct,
        used=label_contributions(scores, choice.codes, prior, access.scale),
        held=choice.known.values,
    )


def write(loaded: LoadedModel, choice: Choice, config: LoraConfig) -> Written:
    """What the decoder writes to the question, and how often the first choice in it is the right one."""
    replay = Replay(loaded, choice.source, batch_size=config.batch_size)
    tokens = greedy(replay, max_new_tokens=config.max_new_tokens)
    texts = [loaded.collator.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    said = [config.say(name) for name in choice.names]
    found = np.array([first_choice(text, said, choice.names) for text in texts])
    correct = (found == choice.codes).astype(np.float64)
    return Written(
        label=choice.label,
        accuracy=mean_interval(correct, draws=config.draws, level=config.level, seed=config.seed),
        unanswered=float((found < 0).mean()),
        ids=choice.source.ids,
        correct=correct,
        examples=tuple(texts[:5]),
    )


def first_choice(text: str, *forms: Sequence[str]) -> int:
    """Number of the choice that a text names first, as whole words in any case; the longer of two; -1 for none.

    `forms` are ways to say the choices, tried in turn: as they were trained (a JSON object, say), then bare.
    """
    for form in forms:
        best: tuple[int, int, int] | None = None
        for number, choice in enumerate(form):
            words = r"\W+".join(map(re.escape, re.findall(r"\w+", choice.lower())))
            at = re.search(rf"(?<!\w){words}(?!\w)", text.lower()) if words else None
            if at is not None:
                entry = (at.start(), -len(choice), number)
                best = entry if best is None else min(best, entry)
        if best is not None:
            return best[2]
    return -1
