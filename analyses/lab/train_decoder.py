"""Trains the text decoder on text alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .canvas import ATTRIBUTES
from .corpus import answered, captioned, document, vocabulary
from .grammar import BOS, DIGITS, EOS, PAD, attribute_words, named_digits, words
from .models import build_decoder
from .stage import Plan, optimize, snap, stage_rng

PLAN = Plan(steps=1000, batch=32, lr=2e-3)
# An answer is one token after some 20 of a scene made up at random. With this weight, and embeddings that start at
# scale 1, every question is answered right after 1,000 steps; with neither (embeddings from Llama's 0.02), only
# the digit was after 2,400, and the adapters took 4 times the steps.
ANSWER_WEIGHT = 10.0
EMBEDDING_STD = 1.0


def encode(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [n, longest] of `<s> text </s>`, padded on the right."""
    index = {word: number for number, word in enumerate(vocabulary())}
    rows = [[index[BOS], *(index[word] for word in words(text)), index[EOS]] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [index[PAD]] * (longest - len(row)) for row in rows])
    return ids, (ids != index[PAD]).long()


def text_loss(model: Any, texts: Sequence[str]) -> torch.Tensor:
    """Mean cross-entropy over the tokens, nats."""
    ids, mask = encode(texts)
    loss: torch.Tensor = model(
        input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
    ).loss
    return loss


def weighted_loss(model: Any, texts: Sequence[str]) -> torch.Tensor:
    """Cross-entropy in which words that name something after a prompt or question weigh `ANSWER_WEIGHT`."""
    names = vocabulary()
    ids, mask = encode(texts)
    logits, target = model(input_ids=ids, attention_mask=mask).logits[:, :-1], ids[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    naming = torch.tensor([names.index(word) for word in (*DIGITS, *sorted(attribute_words()))])
    asking = torch.tensor([names.index("?"), names.index("describe")])
    answer = torch.isin(target, naming) & (torch.isin(ids, asking).cumsum(1)[:, :-1] > 0)
    weight = mask[:, 1:] * (1.0 + (ANSWER_WEIGHT - 1.0) * answer)
    return (loss * weight).sum() / weight.sum()


def batches(rng: np.random.Generator, size: int, count: int = 16) -> list[list[str]]:
    """`count` batches of documents of like length, in random order: padding falls from 60% to about 5%."""
    drawn = sorted((document(rng) for _ in range(size * count)), key=lambda text: len(words(text)))
    order = rng.permutation(count)
    return [drawn[place * size : (place + 1) * size] for place in order.tolist()]


def train_decoder(
    values: dict[str, Any], seed: int, plan: Plan, log: Callable[[str], None]
) -> tuple[Any, dict[str, Any]]:
    """The decoder (frozen, eval mode, weights rounded to float16) and its figures."""
    rng = stage_rng(seed, "decoder")
    model = build_decoder(values).train()
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)

    queue: list[list[str]] = []

    def loss_of_step(_: int) -> torch.Tensor:
        if not queue:
            queue.extend(batches(rng, plan.batch))
        return weighted_loss(model, queue.pop())

    loss = optimize("decoder", model.parameters(), plan, loss_of_step, log)
    snap(model)
    model.eval().requires_grad_(False)
    figures = {"training_loss": loss, **score_decoder(model, seed)}
    return model, figures


@torch.no_grad()
def score_decoder(model: Any, seed: int, documents: int = 600) -> dict[str, Any]:
    """Perplexity a token on fresh documents, and how often it reads a scene in words right.

    `scene_digit_accuracy`: the likeliest word where a caption names the digit. `answer_accuracy`: the
    likeliest word after a question, by what was asked.
    """
    rng = np.random.default_rng([seed, 1])
    perplexity = float(torch.exp(text_loss(model, [document(rng) for _ in range(documents)])))
    names = vocabulary()

    def hit(texts: Sequence[str], wanted: Sequence[str]) -> list[bool]:
        """Whether the last mention of each wanted word is predicted."""
        ids, mask = encode(texts)
        predicted = model(input_ids=ids, attention_mask=mask).logits.argmax(-1)
        rows = enumerate(names.index(word) for word in wanted)
        places = [(row, int(torch.nonzero(ids[row] == word).max()), word) for row, word in rows]
        return [int(predicted[row, place - 1]) == word for row, place, word in places]

    captions = [captioned(rng) for _ in range(documents)]
    answers = [answered(rng) for _ in range(documents)]
    last = [words(text)[-1] for text in answers]
    right = hit(answers, last)
    kinds: dict[str, tuple[str, ...]] = {"digit": DIGITS, **ATTRIBUTES}
    return {
        "perplexity": perplexity,
        "scene_digit_accuracy": float(np.mean(hit(captions, [named_digits(text)[-1] for text in captions]))),
        "answer_accuracy": {
            kind: float(np.mean([ok for ok, word in zip(right, last, strict=True) if word in values]))
            for kind, values in kinds.items()
        },
    }
