"""What an intervention trains on, settled and checked before anything runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap._names import did_you_mean
from modegap.analyses.probe.grid import pipeline_order
from modegap.analyses.probe.labels import LabelProblem, categories, check_groups
from modegap.engine.errors import EngineError
from modegap.engine.lora.adapters import LoraSpec, check_modules
from modegap.engine.replay import ReplaySource, open_source
from modegap.engine.replay.items import Layout
from modegap.engine.replay.source import TEXT_LABELS
from modegap.stores import ActivationStore
from modegap.stores.errors import StoreError, unknown_name

from .config import LoraConfig
from .folder import OtherRunError
from .split import Split, load_split, make_split

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel

Codes = NDArray[np.int64]
_MOST_CLASSES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """An intervention before its first step.

    Attributes:
        label: label column trained for.
        choices: its values.
        question: the prompt.
        source: every usable sample with the question and its answer.
        texts: the same samples with the store's own prompts and texts; None where the store has no texts.
        prompts: the same samples' own prompts.
        split: who is trained on.
        labels: label columns that are asked for, the trained one first.
        points: hook points that are captured again, the rows' own first.
        spec: the adapters.
        end: token that ends an answer; None where the tokenizer has none.
        left_out: (id, reason) of samples that cannot be used.
    """

    label: str
    choices: tuple[str, ...]
    question: str
    source: ReplaySource
    texts: ReplaySource | None
    prompts: ReplaySource
    split: Split
    labels: tuple[str, ...]
    points: tuple[str, ...]
    spec: LoraSpec
    end: int | None
    left_out: tuple[tuple[str, str], ...]

    def numbers(self, ids: Sequence[str]) -> list[int]:
        """Their places in `source`."""
        at = {name: number for number, name in enumerate(self.source.ids)}
        return [at[name] for name in ids]


def settle(
    loaded: LoadedModel,
    store: ActivationStore,
    label: str,
    config: LoraConfig,
    split_file: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """Everything an intervention needs, or an error; reads labels, prompts and, for what is not finite, all rows.

    A split that lies at `split_file` is used again; otherwise one is made and written there.

    Args:
        loaded: the model.
        store: the store.
        label: label column to train for.
        config: the options.
        split_file: where the split is or goes.
        progress: called as `progress(samples read, samples)`.

    Raises:
        ValueError: the label has no classes, or too few samples or groups of one; a split of other samples.
        EngineError: the model cannot be adapted or replayed, or its dtype cannot hold the rows, or there are no texts
            for the control.
        StoreError: an unknown label column, or rows that cannot be read.
    """
    if loaded.modality == "text":
        raise EngineError(
            f"{loaded.name} reads text only; the intervention trains a model on rows of its media adapter"
        )
    spec = LoraSpec(config.rank, config.alpha, config.dropout, tuple(config.modules))
    check_modules(loaded, spec)
    named = (label, *(config.labels or ()), *([config.group] if config.group else []))
    for name in (*named, *config.questions):
        if name not in store.labels:
            raise StoreError(unknown_name("label", name, store.labels))
    _check_kind(store, label)
    prompts = open_source(loaded, store, target="paper", limit=config.n_samples)
    points = _points(loaded, store, prompts.point, config)
    choices = categories(store.labels[label].values).names
    question = config.ask(label, choices)
    end = getattr(loaded.collator.tokenizer, "eos_token_id", None)
    source = open_source(loaded, store, target_label=label, prompt=question, limit=config.n_samples)
    source = answered(loaded, source, [config.say(str(value)) for value in source.labels[label]], end)
    texts = _texts(loaded, store, config, end)
    said = set(source.ids if texts is None else texts.ids)
    usable = [name for name in source.ids if name in said]
    source = _only(source, usable, "it has no text for the control")
    source = _finite(loaded, source, progress)
    usable = list(source.ids)
    codes = categories(source.labels[label]).codes
    groups = None if config.group is None else categories(source.labels[config.group]).codes
    _check_classes(label, source, codes, groups, config)
    answers_of(loaded, [config.say(name) for name in choices], end)
    split = _split(label, source, codes, groups, config, split_file)
    texts = None if texts is None else _only(texts, usable, "it has no usable label")
    prompts = _only(prompts, usable, "it has no usable label")
    assert source.ids == prompts.ids  # their numbers mean the same samples
    assert texts is None or texts.ids == source.ids
    reasons = dict([*(texts.left_out if texts is not None else ()), *source.left_out])  # the label's own last
    left_out = tuple((name, reasons[name]) for name in store.samples if name in reasons)
    return Task(
        label=label,
        choices=choices,
        question=question,
        source=source,
        texts=texts,
        prompts=prompts,
        split=split,
        labels=_labels(store, label, config),
        points=points,
        spec=spec,
        end=end,
        left_out=left_out,
    )


def _finite(
    loaded: LoadedModel, source: ReplaySource, progress: Callable[[int, int], None] | None
) -> ReplaySource:
    """The samples whose rows are finite: others would stop the training at the step that reads them."""
    import torch

    largest = torch.finfo(loaded.dtype).max
    kept, beyond = [], []
    for number, item in enumerate(source.items):
        top = float(source.rows(item).abs().amax())  # NaN where one is
        if math.isfinite(top):
            kept.append(number)
            if top > largest:
                beyond.append(item.id)
        if progress is not None:
            progress(number + 1, len(source))
    if beyond:
        shown = ", ".join(beyond[:5]) + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else "")
        raise EngineError(
            f"the rows of {shown} hold values beyond {largest:.3g}, the largest of the model's "
            f"{str(loaded.dtype).removeprefix('torch.')}; load it with dtype=bfloat16 or float32"
        )
    return source.subset(kept, "its rows hold NaN or infinities")


def answered(
    loaded: LoadedModel, source: ReplaySource, answers: Sequence[str], end: int | None
) -> ReplaySource:
    """The same prompts with these answers, each followed by the token that ends a text."""
    layout = Layout(loaded.collator)
    tail = [] if end is None else [end]
    items = tuple(
        item.continued(np.concatenate([layout.answer(text), tail]).astype(np.int64))
        for item, text in zip(source.items, answers, strict=True)
    )
    return replace(source, items=items)


def answers_of(loaded: LoadedModel, texts: Sequence[str], end: int | None) -> list[Codes]:
    """Token ids of the choices; all with the ending token where one choice is the beginning of another.

    Raises:
        EngineError: two choices have the same tokens.
    """
    layout = Layout(loaded.collator)
    found = [layout.answer(text) for text in texts]
    for number, one in enumerate(found):
        for other in range(number):
            if np.array_equal(one, found[other]):
                raise EngineError(
                    f"the tokenizer of {loaded.name} makes the same tokens of {texts[other]!r} and {texts[number]!r}; "
                    "say them in another way (verbalise), or name another label"
                )
    begins = any(
        len(one) < len(other) and np.array_equal(one, other[: len(one)]) for one in found for other in found
    )
    return [np.append(one, end).astype(np.int64) for one in found] if begins and end is not None else found


def text_column(store: ActivationStore, config: LoraConfig) -> str | None:
    """The label column of the texts; None where there is none."""
    return config.target_label or next((name for name in TEXT_LABELS if name in store.labels), None)


def _texts(
    loaded: LoadedModel, store: ActivationStore, config: LoraConfig, end: int | None
) -> ReplaySource | None:
    column = text_column(store, config)
    if column is None:
        if config.control:
            raise EngineError(
                f"{store.path} holds no texts for the control to be trained on, only {', '.join(store.labels)}; name "
                "their column with target_label, or leave the control out with control=False"
            )
        return None
    found = open_source(loaded, store, target_label=column, limit=config.n_samples)
    return answered(loaded, found, [str(text) for text in found.labels[column]], end)


def _check_kind(store: ActivationStore, label: str) -> None:
    column = store.labels[label]
    known = {value for value in column.values if value is not None}
    wide = column.kind == "text" or len(known) > _MOST_CLASSES
    if wide or any(isinstance(value, float) and not value.is_integer() for value in known):
        others = [
            name
            for name, other in store.labels.items()
            if other.kind == "category" and name not in TEXT_LABELS
        ]
        raise ValueError(
            f"label {label!r} is no choice among classes ({len(known)} values, kind {column.kind}); name one of "
            f"{', '.join(others) or 'the categorical columns, of which this store has none'}"
        )


def _check_classes(
    label: str, source: ReplaySource, codes: Codes, groups: Codes | None, config: LoraConfig
) -> None:
    names = categories(source.labels[label]).names
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    if len(names) < 2:
        raise ValueError(
            f"label {label!r}: got the class {names[0]!r} only; a choice needs two classes"
            if len(names)
            else f"label {label!r} has no values; name another label column"
        )
    short = [
        f"{name!r} {count}" for name, count in zip(names, counts, strict=True) if count < config.min_per_class
    ]
    if short:
        shown = ", ".join(short[:5]) + (f" and {len(short) - 5} more" if len(short) > 5 else "")
        raise ValueError(
            f"label {label!r}: {len(short)} of {len(names)} classes have fewer than {config.min_per_class} samples "
            f"({shown}); extract more samples, or lower min_per_class"
        )
    share = min(config.test_fraction, config.validation_fraction)
    if share * len(codes) < len(names):
        raise ValueError(
            f"label {label!r}: {len(codes)} samples for {len(names)} classes leave fewer than one a class in a part of "
            f"{share:g}; extract at least {int(np.ceil(len(names) / share))}, or raise the fractions"
        )
    if groups is not None:
        if bool((groups < 0).any()):
            raise ValueError(f"group {config.group!r} lacks a value for some samples; name another column")
        rest = config.validation_fraction / (1 - config.test_fraction)
        try:
            check_groups(codes, groups, min(config.test_fraction, rest))
        except LabelProblem as problem:
            raise ValueError(
                f"label {label!r}, group {config.group!r}: {problem}; raise the fractions, or leave the group out"
            ) from problem


def _split(
    label: str,
    source: ReplaySource,
    codes: Codes,
    groups: Codes | None,
    config: LoraConfig,
    path: Path,
) -> Split:
    if not path.exists():
        found = make_split(label, source.ids, codes, groups, config)
        _check_parts(found, label, source)
        found.save(path)
        return found
    found = load_split(path)
    asked = {
        "label": label,
        "group": config.group,
        "seed": config.seed,
        "test_fraction": config.test_fraction,
        "validation_fraction": config.validation_fraction,
    }
    differ = [name for name, value in asked.items() if getattr(found, name) != value]
    if {*found.train, *found.validation, *found.test} != set(source.ids):
        differ.append("the samples")
    if differ:
        raise OtherRunError(path, differ, "does not fit this run")
    return found


def _check_parts(split: Split, label: str, source: ReplaySource) -> None:
    """Every class in every part: two samples to test and to train on, for the probes, and one to stop by."""
    of = dict(zip(source.ids, map(str, source.labels[label]), strict=True))
    for name, least in (("train", 2), ("validation", 1), ("test", 2)):
        counts = Counter(of[sample] for sample in getattr(split, name))
        short = sorted(value for value in set(of.values()) if counts[value] < least)
        if short:
            raise ValueError(
                f"label {label!r}: the {name} part has fewer than {least} samples of {short[0]!r}"
                f"{f' and {len(short) - 1} other classes' if len(short) > 1 else ''}; extract more samples, raise the "
                "fractions, or take another seed"
            )


def _labels(store: ActivationStore, label: str, config: LoraConfig) -> tuple[str, ...]:
    if config.labels is not None:
        return tuple(dict.fromkeys((label, *config.labels)))
    texts = set(TEXT_LABELS) | {"prompt", config.group}
    others = [name for name, one in store.labels.items() if one.kind == "category" and name not in texts]
    return tuple(dict.fromkeys((label, *others)))


def _points(loaded: LoadedModel, store: ActivationStore, own: str, config: LoraConfig) -> tuple[str, ...]:
    inside = {name for name, point in loaded.points.items() if point.stream == "llm"}
    if config.points is not None:
        for name in config.points:
            if name not in inside and name != own:
                raise EngineError(
                    f"points: {name!r} does not lie behind {own}{did_you_mean(name, inside)}; expected some of "
                    f"{', '.join(sorted(inside, key=pipeline_order))}"
                )
        wanted = [name for name in config.points if name != own]
    else:
        assert loaded.structure is not None
        stored = [name for name in store.points if name in inside]
        wanted = [*(stored or [f"llm_hidden_{loaded.structure.n_layers // 2}"]), "llm_final"]
    return (own, *sorted(dict.fromkeys(wanted), key=pipeline_order))


def _only(source: ReplaySource, ids: Sequence[str], reason: str) -> ReplaySource:
    at: dict[str, Any] = {name: number for number, name in enumerate(source.ids)}
    return source.subset([at[name] for name in ids if name in at], reason)
