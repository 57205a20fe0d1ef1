"""The order of an epoch: random steps of samples with similar lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WINDOW = 16


def epoch_batches(
    members: Sequence[int], lengths: Sequence[int], size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """The samples of every optimiser step of an epoch; the same for the same arguments on every machine.

    Samples are shuffled, sorted by length inside windows of 16 steps so that little is padded, and the steps
    shuffled again. Every sample is in one step; the last window may end with a smaller one.

    Args:
        members: the samples' numbers.
        lengths: tokens of each sample, by number.
        size: samples a step.
        seed: with the epoch, of the order.
        epoch: its number.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(np.asarray(members))
    steps: list[list[int]] = []
    for start in range(0, len(order), size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW].tolist(), key=lambda number: -lengths[number])
        steps += [window[at : at + size] for at in range(0, len(window), size)]
    return [steps[place] for place in rng.permutation(len(steps))]
