"""`gradproj`: projections of the decoder's gradients on the modes of the adapter's output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.align import Modes
from modegap.analyses.align.columns import shared_file
from modegap.analyses.lipschitz import LipschitzConfig, LipschitzResult
from modegap.analyses.lipschitz.compute import check_labels, summarise
from modegap.analyses.lipschitz.gradients import GradientPass, gradient_pass
from modegap.analyses.replayed.intervals import Estimate, bootstrap
from modegap.analyses.replayed.opening import AnyReplay, Progress, left_out, open_replay, replay_certificate
from modegap.analyses.result import with_options
from modegap.engine.replay import Replay
from modegap.stores import ActivationStore, as_store

from .config import GradprojConfig
from .outcome import Contrast, GradprojResult

if TYPE_CHECKING:
    from modegap.engine.cluster import Replicas
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]


def gradproj(
    loaded: LoadedModel | Replicas,
    store: ActivationStore | str | Path,
    modes: Modes | str | Path,
    config: GradprojConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> GradprojResult:
    """g_k of every mode: mean over samples of |<grad_z log q, u_k>|, and whether it depends on the alignment.

    Args:
        loaded: the model whose decoder is differentiated, or its replicas on a cluster.
        store: a store with token rows at the adapter's output.
        modes: from `align`, or the file that `Modes.save` wrote.
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every batch.

    Raises:
        ValueError: unknown options, modes of another width, or no sample whose gradient could be computed.
        EngineError: rows, targets or a model that cannot be replayed.
        StoreError: the store cannot be read.
    """
    config = with_options(config or GradprojConfig(), options)
    file, modes = modes, modes if isinstance(modes, Modes) else Modes.load(modes)
    replay = open_replay(loaded, store, config, progress)
    _check_width(replay, modes)
    return project(replay, _gradients(replay, file, modes), modes, config)


def gradients(
    loaded: LoadedModel | Replicas,
    store: ActivationStore | str | Path,
    modes: Modes | str | Path,
    config: LipschitzConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[LipschitzResult, GradprojResult]:
    """`lipschitz` and `gradproj` from one pass of gradients, where the published scripts take two.

    Arguments and errors as there; the options are those of `lipschitz`.
    """
    config = with_options(config or LipschitzConfig(), options)
    file, modes = modes, modes if isinstance(modes, Modes) else Modes.load(modes)
    store = as_store(store)
    check_labels(store, config)
    replay = open_replay(loaded, store, config, progress)
    _check_width(replay, modes)
    found = _gradients(replay, file, modes)
    shared = {name: getattr(config, name) for name in GradprojConfig.__dataclass_fields__}
    return summarise(replay, store, found, config), project(replay, found, modes, GradprojConfig(**shared))


def project(replay: AnyReplay, found: GradientPass, modes: Modes, config: GradprojConfig) -> GradprojResult:
    """The result of a pass of gradients with modes.

    Raises:
        ValueError: no sample's gradient could be computed.
    """
    if not len(found.norms):
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out(replay)[:3])
        raise ValueError(f"no sample's gradient could be computed ({reasons})")
    assert found.means is not None
    assert found.tokens is not None
    width = replay.source.width
    return GradprojResult(
        config=config,
        model=replay.loaded.name,
        source=replay.source.name,
        point=replay.source.point,
        n=len(found.norms),
        considered=modes.considered,
        rho=modes.rho[modes.considered],
        is_ms=modes.is_ms[modes.considered],
        threshold=modes.config.threshold,
        g=found.means,
        g_tokens=found.tokens,
        # a direction drawn at random has E|<v, u>| = |v| sqrt(2 / (pi d)) for large d
        isotropic=float(found.mean_norms.mean() * np.sqrt(2 / (np.pi * width))),
        published=_contrast(found.kept_means, modes, config),
        tokens=_contrast(found.kept_tokens, modes, config),
        failures=left_out(replay),
        retried=len(replay.retried),
        certificate=replay_certificate(replay, found.paths),
    )


def _contrast(g: Float, modes: Modes, config: GradprojConfig) -> Contrast:
    """g_TA / g_MS and the rank correlation with rho, from per-sample projections [n, considered]."""
    from scipy.stats import pearsonr, spearmanr

    rho, is_ms = modes.rho[modes.considered], modes.is_ms[modes.considered]
    mean = g.mean(axis=0)
    ms = float(mean[is_ms].mean()) if is_ms.any() else None
    ta = float(mean[~is_ms].mean()) if (~is_ms).any() else None
    ratio, correlation, p, pearson = Estimate(float("nan")), None, None, None
    if ms and ta is not None:
        by_class = np.stack([g[:, is_ms].mean(axis=1), g[:, ~is_ms].mean(axis=1)], axis=1)
        low = high = None
        if len(g) > 1:
            ends = bootstrap(
                lambda index: by_class[index, 1].mean(axis=1) / by_class[index, 0].mean(axis=1),
                len(g),
                draws=config.draws,
                level=config.level,
                seed=config.seed,
            )
            low, high = float(ends[0]), float(ends[1])
        ratio = Estimate(ta / ms, low, high)
    if len(mean) > 2 and np.ptp(mean) > 0 and np.ptp(rho) > 0:
        test = spearmanr(mean, rho)
        correlation, p = float(test.statistic), float(test.pvalue)
        pearson = float(pearsonr(mean, rho).statistic)
    return Contrast(ms, ta, ratio, correlation, p, pearson)


def _gradients(replay: AnyReplay, file: Modes | str | Path, modes: Modes) -> GradientPass:
    of: Any = modes.U if isinstance(replay, Replay) else shared_file(replay.replicas.cluster, file)
    return gradient_pass(replay, of, keep=modes.considered.tolist())


def _check_width(replay: AnyReplay, modes: Modes) -> None:
    if modes.d != replay.source.width:
        raise ValueError(
            f"the modes are {modes.d} wide, the rows at {replay.source.point} {replay.source.width}: align at "
            "that point"
        )
