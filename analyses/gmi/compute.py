"""`gmi`: the decoder's generalised mutual information under both laws, and the accessibility gap of attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.lipschitz.diameter import mean_rows
from modegap.analyses.probe.labels import LabelProblem, categories, check_groups, usable
from modegap.analyses.replayed.intervals import Estimate, bootstrap, mean_interval
from modegap.analyses.replayed.opening import Progress, left_out, open_replay, replay_certificate
from modegap.analyses.result import with_options
from modegap.engine.errors import EngineError
from modegap.engine.replay import Replay
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .config import GmiConfig
from .information import Information, probe_information
from .laws import label_scores, law_scores
from .outcome import Attribute, GmiResult, LawGmi
from .scores import best_scale, label_contributions

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]
MODAL, TEXT = "modal", "text"


def gmi(
    loaded: LoadedModel,
    store: ActivationStore | str | Path,
    text: ActivationStore | str | Path | None = None,
    config: GmiConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> GmiResult:
    """What the decoder can use of its input, under the modal law and under the text law.

    GMI = E[l(c, z, y) - log E_{z'} exp l(c, z', y)] by Monte Carlo: l the clipped log q of the target text, z' the
    rows of other samples of the same law. For an attribute S, GMI(S | q) is the supremum over the scale of the
    decoder's scores of the verbalised values, I(Z;S) a lower bound from a calibrated probe of the mean rows, and
    Delta_access their difference: what is in the representation and out of the decoder's reach.

    Args:
        loaded: the model whose decoder is scored.
        store: modal store, with token rows of the adapter's output.
        text: text store of the same decoder, with token rows of `text_embedding`; without it the modal law alone.
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every batch of one law.

    Raises:
        ValueError: unknown options, or fewer than two samples with alternatives.
        EngineError: rows, targets or a model that cannot be replayed.
        StoreError: a store cannot be read, or an unknown label column.
    """
    config = with_options(config or GmiConfig(), options)
    stores = {MODAL: as_store(store)}
    if text is not None:
        stores[TEXT] = as_store(text)
    for opened in stores.values():
        for label in (*config.labels, *([config.group] if config.group else [])):
            if label not in opened.labels:
                raise StoreError(unknown_name("label", label, opened.labels))
    laws, attributes, replays = [], [], []
    for name, opened in stores.items():
        own = config if name == MODAL else replace(config, point="text_embedding")
        replay = open_replay(loaded, opened, own, progress)
        laws.append(_law(name, replay, own))
        replays.append(replay)
        attributes += [_attribute(name, label, loaded, opened, own, progress) for label in config.labels]
    hashes = {name: replay.source.content_hash for name, replay in zip(stores, replays, strict=True)}
    certificate = replace(replay_certificate(replays[0]), store_hashes=hashes)
    return GmiResult(
        config=config,
        model=loaded.name,
        laws=tuple(laws),
        gap=_gap(laws, config),
        attributes=tuple(attributes),
        vocabulary=replays[0].decoder.vocabulary,
        retried=sum(len(replay.retried) for replay in replays),
        certificate=certificate,
    )


def _law(name: str, replay: Replay, config: GmiConfig) -> LawGmi:
    found, known, supremum, scale = law_scores(replay, config)
    if known.sum() < 2:
        why = "have the same target" if config.given_target else "share their prompt with another"
        raise ValueError(
            f"GMI of the {name} law: only {int(known.sum())} samples {why}; give one prompt for all (prompt), or "
            "more samples"
        )
    items = replay.source.items
    lone = tuple((items[i].id, "no alternative z' for it") for i in np.flatnonzero(~known))
    values = found.values[known]
    return LawGmi(
        law=name,
        source=replay.source.name,
        point=replay.source.point,
        ids=tuple(items[i].id for i in np.flatnonzero(known)),
        values=values,
        gmi=mean_interval(values, draws=config.draws, level=config.level, seed=config.seed),
        bias=float(np.nanmean(found.bias[known])) if np.isfinite(found.bias[known]).any() else None,
        supremum=supremum,
        scale=scale,
        failures=(*left_out(replay), *lone),
    )


def _gap(laws: list[LawGmi], config: GmiConfig) -> Estimate | None:
    """GMI under the modal law minus that under the text law; paired where the samples are the same."""
    if len(laws) < 2:
        return None
    modal, text = laws
    options: dict[str, Any] = {"draws": config.draws, "level": config.level, "seed": config.seed}
    at = {name: i for i, name in enumerate(text.ids)}
    shared = [i for i, name in enumerate(modal.ids) if name in at]
    if len(shared) >= 2:
        other = text.values[[at[modal.ids[i]] for i in shared]]
        return mean_interval(modal.values[shared] - other, **options)
    ends = [
        bootstrap(
            lambda index, v=law.values: v[index].mean(axis=1)[:, None],  # type: ignore[misc]
            len(law.values),
            **options,
        )
        for law in laws
    ]
    difference = modal.gmi.value - text.gmi.value
    half = float(np.hypot(*((high - low)[0] / 2 for low, high in ends)))
    return Estimate(difference, difference - half, difference + half)


def _attribute(
    law: str,
    label: str,
    loaded: LoadedModel,
    store: ActivationStore,
    config: GmiConfig,
    progress: Progress | None,
) -> Attribute:
    """I(Z;S), GMI(S | q) and their difference for one label; a message where it cannot be had."""
    prompt = config.question.format(label=label) if config.question is not None else config.prompt
    asked = replace(config, prompt=prompt, target_label=label)
    try:
        replay = open_replay(loaded, store, asked, progress)
        classes = categories(replay.source.labels[label])
        keep, codes, notes = usable(classes, 1 / config.folds)
        groups = None
        if config.group is not None:
            groups = categories(replay.source.labels[config.group]).codes[keep]
            check_groups(codes, groups, 1 / config.folds)
    except (LabelProblem, EngineError) as problem:
        return Attribute(law=law, label=label, message=str(problem))
    names = [classes.names[code] for code in np.unique(classes.codes[keep])]
    source = replay.source.subset(keep.tolist(), "its class is too small")
    replay = Replay(loaded, source, batch_size=config.batch_size, progress=progress)
    scores = label_scores(replay, names, config)
    x = mean_rows(store, source.point, [item.index for item in source.items])
    known = probe_information(x, codes, folds=config.folds, C=config.C, seed=config.seed, groups=groups)
    return accessible(law, label, names, codes, scores, known, config, notes)


def accessible(
    law: str,
    label: str,
    names: Sequence[str],
    codes: NDArray[np.int64],
    scores: Float,
    known: Information,
    config: GmiConfig,
    notes: tuple[str, ...] = (),
) -> Attribute:
    """GMI(S | q) and Delta_access of a label from the decoder's scores [n, K] and a probe of the same samples [n].

    Args:
        law: name of the law.
        label: name of the label.
        names: its values, in the order of the scores' columns.
        codes: each sample's value, int64 [n].
        scores: of every verbalised value under every sample.
        known: what the probe knows of every sample.
        config: for the intervals.
        notes: for the entry.
    """
    prior = np.bincount(codes, minlength=len(names)) / len(codes)
    value, scale = best_scale(scores, codes, prior)
    mine = label_contributions(scores, codes, prior, scale)
    options: dict[str, Any] = {"draws": config.draws, "level": config.level, "seed": config.seed}
    gap = mean_interval(known.values - mine, **options)
    low_high = mean_interval(mine, **options)
    return Attribute(
        law=law,
        label=label,
        n=len(codes),
        classes=tuple(names),
        entropy=known.entropy,
        information=mean_interval(known.values, **options),
        gmi=Estimate(value, low_high.low, low_high.high),
        scale=scale,
        delta=gap,
        probe_accuracy=known.accuracy,
        decoder_accuracy=float((scores.argmax(axis=1) == codes).mean()),
        chance=float(prior.max()),
        trust=float(np.mean(known.trust)),
        notes=notes,
    )
