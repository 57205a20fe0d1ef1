"""`ablate`: what the decoder loses with modes projected out of a hook point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.align import Modes
from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.models.score import target_nll
from modegap.kernels import ablate as project_out
from modegap.kernels import last_path

from .config import AblateConfig
from .outcome import AblationResult, Condition, Draw
from .statistics import paired
from .subsets import Subset, subsets_of

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset, Sample
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]
Progress = Callable[[int, int], None]


def ablate(
    loaded: LoadedModel,
    data: Dataset | Sequence[Sample],
    modes: Modes | str | Path,
    subsets: Sequence[str] | None = None,
    config: AblateConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> AblationResult:
    """Cross-entropy of the target tokens with subsets of modes projected out, against none.

    z' = z - U U'z at every position of the hook point, on z itself as published (not on z minus its mean).
    Every subset takes one forward pass over the samples; one without modes is left out with a message.

    Args:
        loaded: the model the modes come from.
        data: samples with target texts.
        modes: from `align`, or the file that `Modes.save` wrote.
        subsets: which modes to remove (see `AblateConfig`).
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every pass over the samples.

    Raises:
        ValueError: unknown options or subsets, no subset with modes, or modes of another width.
        EngineError: an unknown hook point, or a sample that cannot be scored.
    """
    given = {} if subsets is None else {"subsets": tuple(subsets)}
    config = with_options(config or AblateConfig(), {**given, **options})
    modes = modes if isinstance(modes, Modes) else Modes.load(modes)
    point = config.point or modes.point
    wanted, left_out = subsets_of(modes, tuple(config.subsets), config.seed)
    count = len(data) if config.n_samples is None else min(config.n_samples, len(data))
    if count < 2:
        raise ValueError(f"data: got {count} samples, a paired comparison needs at least 2")

    done = 0

    def losses(edit: tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None) -> Float:
        nonlocal done
        samples = (data[index] for index in range(count))
        found = target_nll(loaded, samples, batch_size=config.batch_size, edit=edit)
        done += 1
        if progress is not None:
            progress(done, 1 + len(wanted))
        return found

    baseline = losses(None)
    conditions = []
    for name, members in groupby(wanted, key=lambda subset: subset.name):
        draws = [
            _draw(modes, config, subset, baseline, losses((point, _remove(modes, subset))))
            for subset in members
        ]
        mean = np.mean([draw.loss for draw in draws], axis=0)
        conditions.append(Condition(name, tuple(draws), _compare(config, baseline, mean)))
    return AblationResult(
        config=config,
        model=loaded.name,
        point=point,
        ids=tuple(_ids(data, count)),
        baseline=baseline,
        conditions=tuple(conditions),
        left_out=left_out,
        certificate=_certificate(modes) if wanted else modes.certificate,
    )


def _certificate(modes: Modes) -> Certificate:
    """That of the modes, with the path that projected them out."""
    paths = {**modes.certificate.kernel_paths, **path_facts([last_path("ablate")])}
    return replace(modes.certificate, kernel_paths=paths)


def _draw(modes: Modes, config: AblateConfig, subset: Subset, baseline: Float, loss: Float) -> Draw:
    index = np.array(subset.indices)
    total = float(modes.eigenvalues[index].sum() / modes.eigenvalues.sum())
    return Draw(subset, modes.share(index), total, loss, _compare(config, baseline, loss))


def _compare(config: AblateConfig, baseline: Float, loss: Float) -> Any:
    return paired(baseline, loss, draws=config.draws, level=config.level, seed=config.seed)


def _remove(modes: Modes, subset: Subset) -> Callable[[torch.Tensor], torch.Tensor]:
    basis = torch.from_numpy(np.ascontiguousarray(modes.U[:, list(subset.indices)]))
    placed: dict[torch.device, torch.Tensor] = {}

    def remove(z: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != len(basis):
            raise ValueError(
                f"the hook point is {z.shape[-1]} wide, the modes {len(basis)}: align at the point that "
                "is edited"
            )
        if z.device not in placed:
            placed[z.device] = basis.to(z.device)
        return project_out(z, placed[z.device])

    return remove


def _ids(data: Dataset | Sequence[Sample], count: int) -> list[str]:
    known = getattr(data, "ids", None)
    return [str(name) for name in known[:count]] if known is not None else [data[i].id for i in range(count)]
