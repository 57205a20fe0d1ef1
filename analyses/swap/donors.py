"""Whose component a sample is given, and by how much that moves it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

Float = NDArray[np.float64]
Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def class_means(rows: NDArray[np.float32], codes: NDArray[np.int64]) -> Float:
    """Mean of the samples' mean rows [n, d] of every class, fp64 [classes, d]."""
    sums = np.zeros((int(codes.max()) + 1, rows.shape[1]))
    np.add.at(sums, codes, rows.astype(np.float64))
    return np.asarray(sums / np.bincount(codes)[:, None])


def draw_donors(codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Another class for every sample, int64 [n]: drawn one after the other from one generator, as published."""
    rng = np.random.default_rng(seed)
    classes = np.arange(int(codes.max()) + 1)
    return np.array([rng.choice(classes[classes != code]) for code in codes.tolist()], dtype=np.int64)


def moves(
    means: Float, rows: NDArray[np.float32], codes: NDArray[np.int64], donors: NDArray[np.int64], U: Float
) -> tuple[Float, Float]:
    """Squared norms [n] of what a swap in span(U) adds to every position.

    Returns:
        (|U'(mean of the donor - the sample's own mean)|^2, the perturbation itself;
        |U'(mean of the donor - mean of the sample's class)|^2, which the published script divides by).
    """
    given = means @ U
    own = rows.astype(np.float64) @ U
    return (
        np.square(given[donors] - own).sum(axis=1),
        np.square(given[donors] - given[codes]).sum(axis=1),
    )


def swapping(means: Float, donors: NDArray[np.int64], U: Float) -> Edit:
    """z'_t = z_t + U U'(mean of the donor - mean_t z_t): the class's component swapped, each position's kept."""
    basis = torch.from_numpy(np.ascontiguousarray(U))
    given = torch.from_numpy(means @ U)
    donor = torch.from_numpy(donors)
    placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def fn(z: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        wide = torch.float64 if z.dtype == torch.float64 else torch.float32
        if z.device not in placed:
            placed[z.device] = (basis.to(z.device, wide), given.to(z.device, wide), donor.to(z.device))
        u, target, who = placed[z.device]
        samples, at = torch.unique(owner, return_inverse=True)
        sums = torch.zeros((len(samples), z.shape[1]), dtype=wide, device=z.device)
        sums.index_add_(0, at, z.to(wide))
        own = (sums / torch.bincount(at, minlength=len(samples))[:, None]) @ u
        return (z.to(wide) + ((target[who[samples]] - own) @ u.T)[at]).to(z.dtype)

    return fn
