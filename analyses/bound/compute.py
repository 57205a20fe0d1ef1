"""`bound`: Theorems 2 and 3 from measured constants, beside the measured gap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.distance.transport import w1
from modegap.analyses.gmi import GmiResult
from modegap.analyses.lipschitz import LipschitzResult
from modegap.analyses.lipschitz.diameter import mean_rows
from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .config import BoundConfig
from .constants import log10_prefactor
from .outcome import BoundResult, Pair, Prefactor
from .penalty import penalty

if TYPE_CHECKING:
    from modegap.analyses.replayed.intervals import Estimate

Float = NDArray[np.float64]
Rows = NDArray[np.float32]


def bound(
    store: ActivationStore | str | Path,
    text: ActivationStore | str | Path,
    lipschitz: LipschitzResult,
    gmi: GmiResult | None = None,
    others: Sequence[BoundResult] = (),
    config: BoundConfig | None = None,
    **options: Any,
) -> BoundResult:
    """The bounds on how much the change of law can cost, with the gap that was measured.

    Theorem 2: |GMI_M - GMI_T| <= (1 + exp(L D)) L E[W1(P_M, P_T)], and the same with D_eff. E[W1] is taken twice:
    between the mean rows of the two laws, as published, and as the mean distance of a sample's two mean rows,
    which is E[W1(P_M(. | y), P_T(. | y))] where every target occurs once. L is a statistic of local gradient
    norms, so the bound is an estimate.

    Theorem 3: |E_M log h - E_T log h| <= L_h E[W1] for a probe h of each label.

    Args:
        store: modal store.
        text: text store of the same decoder.
        lipschitz: the gradient norms under the modal law.
        gmi: with both laws, for the measured gap.
        others: results of other models and data sets, whose pairs join the ranking.
        config: options; `options` are fields of it given by name.

    Raises:
        ValueError: unknown options, rows of different widths, or too few samples.
        StoreError: a store cannot be read, or lacks a hook point or label.
    """
    config = with_options(config or BoundConfig(), options)
    modal_store, text_store = as_store(store), as_store(text)
    sides = [(modal_store, config.point), (text_store, config.text_point)]
    for opened, point in sides:
        if point not in opened.points:
            raise StoreError(unknown_name("hook point", point, opened.points))
        for label in config.labels:
            if label not in opened.labels:
                raise StoreError(unknown_name("label", label, opened.labels))
    widths = [opened.points[point].width for opened, point in sides]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{config.point} is {widths[0]} wide, {config.text_point} {widths[1]}: two spaces; take a text "
            "baseline of the same decoder"
        )
    chosen = [np.flatnonzero(opened.complete_samples()) for opened, _ in sides]
    if min(map(len, chosen)) < 4:
        raise ValueError(
            f"got {len(chosen[0])} and {len(chosen[1])} complete samples, expected at least 4 a side"
        )
    rows = [mean_rows(opened, point, at.tolist()) for (opened, point), at in zip(sides, chosen, strict=True)]
    pair = _pair(modal_store, text_store, chosen, rows, lipschitz, gmi, config)
    penalties = tuple(
        penalty(
            label,
            (rows[0], [modal_store.labels[label].values[i] for i in chosen[0]]),
            (rows[1], [text_store.labels[label].values[i] for i in chosen[1]]),
            config,
            _constant(lipschitz.norms, config),
        )
        for label in config.labels
    )
    certificate = Certificate(
        mode="float64",
        kernel_paths={},
        count=len(rows[0]),
        width=widths[0],
        store_hashes={"modal": modal_store.content_hash(), "text": text_store.content_hash()},
    )
    joined = {one.name: one for result in others for one in result.pairs}
    joined.pop(pair.name, None)
    return BoundResult(config, (pair, *joined.values()), penalties, certificate)


def _pair(
    modal: ActivationStore,
    text: ActivationStore,
    chosen: Sequence[NDArray[np.int64]],
    rows: Sequence[Rows],
    lipschitz: LipschitzResult,
    gmi: GmiResult | None,
    config: BoundConfig,
) -> Pair:
    rng = np.random.default_rng(config.seed)
    count = min(config.rows, len(rows[0]), len(rows[1]))
    picked = [side[rng.permutation(len(side))[:count]].astype(np.float64) for side in rows]
    marginal = w1(*picked)
    # what two halves of one law are apart: as many rows a side as each half has, on both comparisons
    half = count // 2
    floor = w1(picked[0][:half], picked[0][half : 2 * half])
    halves = w1(picked[0][:half], picked[1][:half])
    paired = _paired(modal, text, chosen, rows)
    gap: Estimate | None = None if gmi is None else gmi.gap
    constants = {
        "positions": _constant(lipschitz.norms, config),
        "shift": _constant(lipschitz.shifts, config),
    }
    distance = max(x for x in (marginal, paired) if x is not None)
    prefactors = [
        Prefactor(
            constant=name,
            diameter=which,
            L=L,
            D=D,
            log10=log10_prefactor(L, D),
            log10_bound=log10_prefactor(L, D) + float(np.log10(distance)) if distance > 0 else float("-inf"),
        )
        for name, L in constants.items()
        for which, D in (("D", lipschitz.diameter.D), ("D_eff", lipschitz.diameter.D_eff))
    ]
    return Pair(
        name=f"{lipschitz.model} / {lipschitz.dataset or modal.path}",
        n=count,
        L=constants["positions"],
        w1=marginal,
        w1_halves=halves,
        w1_floor=floor,
        paired=paired,
        first_order=constants["positions"] * marginal,
        prefactors=tuple(prefactors),
        gap=gap,
    )


def _paired(
    modal: ActivationStore, text: ActivationStore, chosen: Sequence[NDArray[np.int64]], rows: Sequence[Rows]
) -> float | None:
    """Mean distance between the two mean rows of the samples that both stores hold; None without any."""
    names = [[store.samples[i] for i in at] for store, at in zip((modal, text), chosen, strict=True)]
    place = {name: i for i, name in enumerate(names[1])}
    shared = [(i, place[name]) for i, name in enumerate(names[0]) if name in place]
    if not shared:
        return None
    mine, theirs = (list(side) for side in zip(*shared, strict=True))
    return float(np.linalg.norm(rows[0][mine].astype(np.float64) - rows[1][theirs], axis=1).mean())


def _constant(norms: Float, config: BoundConfig) -> float:
    if config.constant == "mean":
        return float(norms.mean())
    return float(norms.max() if config.constant == "max" else np.percentile(norms, 95))
