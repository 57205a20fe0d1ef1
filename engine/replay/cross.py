"""Every answer under every sample's rows: log q(y_j | z_i, c_i), each prompt computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.models.backoff import Backoff
from modegap.engine.models.fused import fused_layers
from modegap.engine.models.hooks import evaluating

from .decoder import mean_by_item, token_log_probs
from .items import Int
from .runner import Replay

Float = NDArray[np.float64]


@torch.no_grad()
def cross_scores(
    replay: Replay, answers: Sequence[Sequence[Int]], *, total: bool = False, prompts: int | None = None
) -> list[Float]:
    """Mean (or total) log-probability of each answer of each sample, nats: one fp64 [answers[i]] a sample.

    The prompt with its rows runs once a sample; answers follow it as continuations that share its keys and
    values, so that K answers of m tokens cost T + K m positions instead of K (T + m). Where the model's cache
    cannot be shared (sliding windows, recurrent states), every pair runs in full.

    Args:
        replay: over a source whose items end with their answers (target `answer`, a media model).
        answers: for each sample of the source, token ids of the answers to score.
        total: sum over an answer's tokens instead of their mean.
        prompts: prompts a forward; the replay's batch size unless given. Continuations run by as many
            sequences as the batch size.

    Raises:
        ValueError: another number of answer lists than samples.
        EngineError: an empty answer, or rows that stand among the scored tokens.
    """
    source = replay.source
    if len(answers) != len(source):
        raise ValueError(f"answers: got {len(answers)} lists, expected {len(source)}, one a sample")
    found: list[Float] = [np.full(len(given), np.nan) for given in answers]
    for item, given in zip(source.items, answers, strict=True):
        for answer in given:
            item.continued(answer)  # its errors name the sample, before anything runs
    backoff: Backoff[int] = Backoff(lambda number: source.items[number].id, replay.note_retry)
    done = 0
    fused = fused_layers(replay.loaded.model) if replay.fused else nullcontext()
    asked = [number for number, given in enumerate(answers) if len(given)]
    batches = list(_equal_prompts(replay, asked, prompts or replay.batch_size))
    with evaluating(replay.loaded.model), fused, closing(replay.ahead(batches)) as coming:
        for batch in coming:
            for part, values in backoff.run(batch, lambda part: _score(replay, part, answers, total)):
                for number, scores in zip(part, values, strict=True):
                    found[number] = scores
                done += len(part)
                replay.progress(done, len(asked))
    return found


def _equal_prompts(replay: Replay, asked: Sequence[int], size: int) -> Iterator[list[int]]:
    """Samples whose prompts have the same length, so that no padding stands between prompt and answer."""
    items = replay.source.items
    order = sorted(asked, key=lambda number: (-items[number].prompt_length, number))
    for _, members in groupby(order, key=lambda number: items[number].prompt_length):
        group = list(members)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _score(
    replay: Replay, members: Sequence[int], answers: Sequence[Sequence[Int]], total: bool
) -> list[Float]:
    decoder = replay.decoder
    pairs = [(row, answer) for row, number in enumerate(members) for answer in answers[number]]
    cut = [replay.source.items[number] for number in members]
    heads = [item.continued(item.tokens[item.target[:1]]) for item in cut]
    z = torch.cat([replay.rows(number) for number in members])
    packed = decoder.pack(heads, z, share=False)
    length = heads[0].prompt_length
    first, layers = decoder.prefill(packed.embeds[:, :length])
    counts = [len(answer) for _, answer in pairs]
    if layers is None:
        log_q = _whole(replay, members, pairs)
    else:
        rows = torch.tensor([row for row, _ in pairs])
        heads_of = torch.tensor([int(answer[0]) for _, answer in pairs])
        opening = torch.cat(
            [
                token_log_probs(first[rows[at : at + 256].to(first.device)], heads_of[at : at + 256])
                for at in range(0, len(pairs), 256)
            ]
        )
        log_q = _continued(replay, layers, rows, pairs, opening)
    means = mean_by_item(log_q, counts)
    scores = (means * torch.tensor(counts, device=means.device) if total else means).cpu().numpy()
    ends = np.cumsum([len(answers[number]) for number in members])[:-1]
    return [np.asarray(part) for part in np.split(scores, ends)]


def _continued(
    replay: Replay,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    rows: torch.Tensor,
    pairs: Sequence[tuple[int, Int]],
    opening: torch.Tensor,
) -> torch.Tensor:
    """Log-probability of every answer token, pair after pair; `opening` [pairs] has those of the first ones."""
    parts: list[torch.Tensor] = [opening[i : i + 1] for i in range(len(pairs))]
    longer = sorted(
        (i for i, (_, answer) in enumerate(pairs) if len(answer) > 1), key=lambda i: len(pairs[i][1])
    )
    size = replay.batch_size
    for start in range(0, len(longer), size):
        chosen = longer[start : start + size]
        width = max(len(pairs[i][1]) for i in chosen) - 1
        tokens = torch.zeros((len(chosen), width), dtype=torch.long)
        wanted = torch.zeros((len(chosen), width), dtype=torch.bool)
        for row, i in enumerate(chosen):
            answer = torch.from_numpy(pairs[i][1])
            tokens[row, : len(answer) - 1] = answer[:-1]
            wanted[row, : len(answer) - 1] = True
        logits = replay.decoder.continue_from(layers, rows[chosen], tokens, wanted)
        labels = torch.cat([torch.from_numpy(pairs[i][1][1:]) for i in chosen])
        log_q = torch.split(token_log_probs(logits, labels), [len(pairs[i][1]) - 1 for i in chosen])
        for i, rest in zip(chosen, log_q, strict=True):
            parts[i] = torch.cat([parts[i].to(rest.device), rest])
    return torch.cat([part.to(opening.device) for part in parts])


def _whole(replay: Replay, members: Sequence[int], pairs: Sequence[tuple[int, Int]]) -> torch.Tensor:
    """The same without shared keys and values: every pair as its own sequence."""
    found = []
    for start in range(0, len(pairs), replay.batch_size):
        part = pairs[start : start + replay.batch_size]
        items = [replay.source.items[members[row]].continued(answer) for row, answer in part]
        z = torch.cat([replay.rows(members[row]) for row, _ in part])
        packed = replay.decoder.pack(items, z, share=False)
        found.append(token_log_probs(replay.decoder.logits(packed), packed.labels))
    return torch.cat(found)
