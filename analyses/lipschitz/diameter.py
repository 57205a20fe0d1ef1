"""D and D_eff: how far apart representations are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.distance.kernel import participation_ratio

if TYPE_CHECKING:
    from modegap.stores import ActivationStore

Float = NDArray[np.float64]

_PAPER_ROWS, _PAPER_PAIRS, _PAPER_SEEDS = 500, 200, (42, 123)
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Diameter:
    """Extent of the mean representations of a store's samples, [n, d].

    Attributes:
        D: max(from_std, from_pairs).
        from_std: std(Z) sqrt(d), the standard deviation over all entries (ddof 0).
        from_pairs: largest Euclidean distance among the pairs.
        D_eff: std(Z) sqrt(PR), the same with the effective dimension in the place of d.
        participation: PR = (sum lambda)^2 / sum lambda^2 of the covariance of the rows.
        n: rows.
        pairs: pairs that were looked at.
    """

    D: float
    from_std: float
    from_pairs: float
    D_eff: float
    participation: float
    n: int
    pairs: int


def diameter(
    rows: NDArray[np.floating], *, pairs: int = 10_000, seed: int = 42, paper: bool = False
) -> Diameter:
    """The extent of rows [n, d].

    Args:
        rows: one a sample.
        pairs: random pairs of rows; 0 takes all n (n - 1) / 2.
        seed: of the pairs.
        paper: the published script: 500 random rows, of which 200 pairs drawn with repetition.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"a diameter needs at least 2 samples, got {len(rows)}")
    x = np.asarray(rows, dtype=np.float64)
    if paper and len(x) > _PAPER_ROWS:
        x = x[np.random.default_rng(_PAPER_SEEDS[0]).choice(len(x), size=_PAPER_ROWS, replace=False)]
    std = float(x.std())
    count = len(x) * (len(x) - 1) // 2
    if paper:
        rng = np.random.default_rng(_PAPER_SEEDS[1])
        drawn = min(_PAPER_PAIRS, len(x))
        a, b = (rng.choice(len(x), size=drawn, replace=True) for _ in range(2))
    elif pairs and pairs < count:
        rng = np.random.default_rng(seed)
        a = rng.integers(len(x), size=pairs)
        b = (a + rng.integers(1, len(x), size=pairs)) % len(x)  # never a row with itself
    else:
        a, b = np.triu_indices(len(x), 1)
    largest = max(
        float(np.linalg.norm(x[a[at : at + _BLOCK]] - x[b[at : at + _BLOCK]], axis=1).max())
        for at in range(0, len(a), _BLOCK)
    )
    from_std = std * float(np.sqrt(x.shape[1]))
    share = participation(x)
    return Diameter(
        max(from_std, largest), from_std, largest, std * float(np.sqrt(share)), share, len(x), len(a)
    )


def participation(x: Float) -> float:
    """Participation ratio (tr C)^2 / tr C^2 of the covariance C of rows [n, d], between 1 and min(n - 1, d).

    From the smaller of the two Gram matrices, which have the same eigenvalues. 0 for rows without spread.
    """
    centred = x - x.mean(axis=0)
    gram = centred @ centred.T if len(x) <= x.shape[1] else centred.T @ centred
    return participation_ratio(gram)


def mean_rows(store: ActivationStore, point: str, samples: Sequence[int]) -> NDArray[np.float32]:
    """Mean row of the given samples of a store, fp32 [n, d]: its pooled rows, else means of its token rows."""
    found = np.empty((len(samples), store.points[point].width), dtype=np.float32)
    pooled = store.points[point].rows != "tokens"
    rows = store.rows(point, "pooled" if pooled else "tokens")
    for at, index in enumerate(samples):
        one = rows.sample(index)
        found[at] = one[0] if pooled else one.mean(axis=0, dtype=np.float64)
    return found
