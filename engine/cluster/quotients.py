"""u_k' S u_k of many modes: each worker takes some columns of U."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.kernels import rayleigh
from modegap.stores.durable import replaced

from .mapping import map_tasks
from .session import Cluster

Float = NDArray[np.float64]


def rayleigh_on(cluster: Cluster, modes: Float, covariance: Float, block: int = 512) -> Float:
    """u_k' S u_k of every column u_k, fp64 [K].

    Both matrices go into files of the cluster's folder; a worker reads S and its own columns.

    Args:
        cluster: the workers.
        modes: U [d, K].
        covariance: S [d, d].
        block: columns a task.

    Raises:
        EngineError: the workers share no folder.
    """
    # Columns as rows: a block of them is then one run of bytes in the file.
    paths = [_put(cluster, "modes", np.ascontiguousarray(modes.T)), _put(cluster, "covariance", covariance)]
    count = modes.shape[1]
    columns = [(lo, min(lo + block, count)) for lo in range(0, count, block)]
    try:
        need = 2 * covariance.nbytes
        found = map_tasks(cluster, _block, columns, tuple(map(str, paths)), name="rayleigh", need=need)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    return np.concatenate(found) if found else np.empty(0)


def _put(cluster: Cluster, name: str, matrix: Float) -> Path:
    key = hashlib.sha256(np.ascontiguousarray(matrix).reshape(-1).view(np.uint8).data).hexdigest()[:24]
    path = cluster.scratch() / f"{name}-{key}.npy"
    if not path.exists():
        with replaced(path) as aside, aside.open("wb") as file:
            np.save(file, matrix)
    return path


def _block(columns: tuple[int, int], paths: tuple[str, str]) -> Float:
    modes, covariance = np.load(paths[0], mmap_mode="r"), np.load(paths[1])
    lo, hi = columns
    block = torch.from_numpy(np.ascontiguousarray(modes[lo:hi].T))
    return np.asarray(rayleigh(block, torch.from_numpy(covariance)).cpu().numpy())
