"""Scores of one law, from a replay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modegap.engine.replay import Replay, ReplayItem, cross_scores
from modegap.engine.replay.items import Layout

from .config import GmiConfig
from .scores import Contributions, clip, contributions

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def prompt_key(item: ReplayItem) -> bytes:
    """What stands around the rows: equal for samples with the same prompt, however many rows they have."""
    head = item.tokens[: item.prompt_length].copy()
    head[item.slot] = -1
    kept = np.concatenate([head[:1], head[1:][(head[1:] != -1) | (head[:-1] != -1)]])  # one -1 a run
    return bytes(kept.data)


def blocks(items: Sequence[ReplayItem], size: int, seed: int) -> Iterator[list[int]]:
    """Random blocks of at most `size` samples with the same prompt, of about equal size; lone samples apart."""
    rng = np.random.default_rng(seed)
    groups: dict[bytes, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(prompt_key(item), []).append(number)
    for members in groups.values():
        order = rng.permutation(members)
        for part in np.array_split(order, -(-len(order) // size)):
            yield part.tolist()


def law_scores(replay: Replay, config: GmiConfig) -> tuple[Contributions, NDArray[np.bool_], float, float]:
    """Contributions of every sample of a law, which of them have alternatives, and the best scale's GMI.

    Each block of `config.alternatives` + 1 samples is scored all against all; the alternatives for a target are
    the rows of the other samples of its block.

    Returns:
        (contributions [n], bool [n], the supremum over s of the mean contribution at s l, that s).
    """
    items = replay.source.items
    total = config.score == "total"
    vocabulary = replay.decoder.vocabulary
    answers: list[Int] = [item.tokens[item.target] for item in items]
    parts = list(blocks(items, config.alternatives + 1, config.seed))
    wanted: list[list[Int]] = [[] for _ in items]
    for part in parts:
        for number in part:
            wanted[number] = [answers[other] for other in part] if len(part) > 1 else []
    found = cross_scores(replay, wanted, total=total)
    values, bias = np.full(len(items), np.nan), np.full(len(items), np.nan)
    kept: list[tuple[Float, NDArray[np.bool_]]] = []
    for part in parts:
        if len(part) < 2:
            continue
        tokens = np.array([len(answers[number]) for number in part])
        # found[j] holds every answer of the block under the rows of j: rows of the matrix are targets
        scores = clip(np.stack([found[j] for j in part], axis=1), tokens[:, None], vocabulary, total=total)
        allowed = ~np.eye(len(part), dtype=bool)
        if config.given_target:
            same = [[np.array_equal(answers[i], answers[j]) for j in part] for i in part]
            allowed &= np.array(same)
        made = contributions(scores, allowed)
        values[part], bias[part] = made.values, made.bias
        kept.append((scores, allowed))
    supremum, scale = _supremum(kept)
    return Contributions(values, bias), np.isfinite(values), supremum, scale


def label_scores(replay: Replay, names: Sequence[str], config: GmiConfig) -> Float:
    """Score of every verbalised label under every sample [n, K].

    Not clipped: the scale of these scores is free, and a clip would take away what tells unlikely labels apart.
    """
    layout = Layout(replay.loaded.collator)
    answers = [layout.answer(config.verbalise.format(value=name)) for name in names]
    total = config.label_score == "total"
    return np.stack(cross_scores(replay, [answers] * len(replay.source), total=total))


def _supremum(kept: Sequence[tuple[Float, NDArray[np.bool_]]]) -> tuple[float, float]:
    """Largest mean contribution over the scale of the score, and the scale.

    The own rows count among the alternatives here, which keeps it at or below log(K + 1): without them a large
    scale would turn a finite number of worse alternatives into any amount of information.
    """
    from scipy.optimize import minimize_scalar

    if not kept:
        return float("nan"), float("nan")

    def loss(power: float) -> float:
        scale = 10.0**power
        values = [
            contributions(scale * scores, allowed | np.eye(len(scores), dtype=bool)).values
            for scores, allowed in kept
        ]
        return -float(np.mean(np.concatenate(values)))

    grid = np.linspace(-3, 3, 25)
    found = [loss(power) for power in grid]
    at = int(np.argmin(found))
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    refined = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    value, power = min((float(refined.fun), float(refined.x)), (found[at], float(grid[at])))
    return (-value, 10.0**power) if value < 0 else (0.0, 10.0 ** grid[0])  # 0 is the limit of a small scale
