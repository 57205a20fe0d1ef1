"""Greedy answers from stored rows: what the decoder writes, without encoder and media."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from modegap.engine.models.backoff import Backoff
from modegap.engine.models.hooks import evaluating

from .items import Int
from .runner import Replay


@torch.no_grad()
def greedy(replay: Replay, *, max_new_tokens: int) -> list[Int]:
    """The most probable next token again and again behind each sample's prompt, until one ends the text.

    Prompts of one length run together, so that nothing is padded and the model's own cache serves.

    Args:
        replay: over a source whose items end with their answers, which are not read.
        max_new_tokens: longest answer.

    Returns:
        token ids of each sample's answer in the order of the source, without the token that ended it.

    Raises:
        ValueError: no tokens to write.
        EngineError: a sample that does not fit into memory alone.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens}, expected at least 1")
    items = replay.source.items
    ends = _ends(replay)
    found: list[Int] = [np.zeros(0, dtype=np.int64) for _ in items]
    backoff: Backoff[int] = Backoff(lambda number: items[number].id, replay.note_retry)
    order = sorted(range(len(items)), key=lambda number: (-items[number].prompt_length, number))
    done = 0
    with evaluating(replay.loaded.model):
        for _, members in groupby(order, key=lambda number: items[number].prompt_length):
            group = list(members)
            for start in range(0, len(group), replay.batch_size):
                batch = group[start : start + replay.batch_size]
                for part, written in backoff.run(
                    batch, lambda part: _write(replay, part, ends, max_new_tokens)
                ):
                    for number, tokens in zip(part, written, strict=True):
                        found[number] = tokens
                    done += len(part)
                    replay.progress(done, len(items))
    return found


def _ends(replay: Replay) -> list[int]:
    """Tokens that end a text: the tokenizer's and those of the model's generation settings."""
    named = getattr(getattr(replay.loaded.model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list | tuple) else [named]
    own = replay.loaded.collator.tokenizer.eos_token_id
    return sorted({int(token) for token in (*several, own) if token is not None})


def _write(replay: Replay, members: Sequence[int], ends: list[int], most: int) -> list[Int]:
    decoder = replay.decoder
    cut = [replay.source.items[number] for number in members]
    heads = [item.continued(item.tokens[item.target[:1]]) for item in cut]
    packed = decoder.pack(heads, torch.cat([replay.rows(number) for number in members]), share=False)
    embeds = packed.embeds[:, : heads[0].prompt_length]
    stop = torch.tensor(ends, dtype=torch.long)
    written = torch.zeros((len(members), 0), dtype=torch.long)
    ended = torch.zeros(len(members), dtype=torch.bool)
    cache = None
    while written.shape[1] < most and not bool(ended.all()):
        out = decoder.model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        cache = out.past_key_values
        token = out.logits[:, -1].argmax(dim=-1).cpu()
        ended |= torch.isin(token, stop)
        written = torch.cat([written, token[:, None]], dim=1)
        embeds = decoder.embedding(token[:, None].to(decoder.device))
    return [_until(row, ends) for row in written.numpy()]


def _until(tokens: Int, ends: list[int]) -> Int:
    at = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: at[0]] if len(at) else tokens
