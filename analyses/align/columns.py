"""Some modes out of the file that `Modes.save` wrote, without reading the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from modegap.engine.cluster import Cluster

    from .modes import Modes

Float = NDArray[np.float64]


def columns_shape(path: str | Path) -> tuple[int, int]:
    """(d, K) of the modes in a file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        width, count = file.get_slice("U").get_shape()
    return int(width), int(count)


def read_columns(path: str | Path, indices: Sequence[int]) -> Float:
    """The modes of these numbers, [d, len(indices)]; reads the run of columns from the first to the last.

    Raises:
        OSError: no such file here.
    """
    from safetensors import safe_open

    chosen = np.asarray(indices, dtype=np.int64)
    if not len(chosen):
        return np.empty((columns_shape(path)[0], 0))
    first, last = int(chosen.min()), int(chosen.max()) + 1
    with safe_open(path, framework="numpy") as file:
        run: Float = file.get_slice("U")[:, first:last]
    return np.ascontiguousarray(run[:, chosen - first])


def shared_file(cluster: Cluster, modes: Modes | str | Path) -> Path:
    """A file of the modes that the workers of a cluster can read: their own, or one in the cluster's folder.

    Raises:
        EngineError: the modes are no file and the workers share no folder.
    """
    from .modes import Modes

    if not isinstance(modes, Modes):
        return Path(modes).absolute()
    from modegap.engine.cluster.reducing import fingerprint

    path = cluster.scratch() / f"modes-{fingerprint((modes.U, modes.eigenvalues))}.safetensors"
    return path if path.exists() else modes.save(path)
