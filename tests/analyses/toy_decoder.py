"""Decoders whose log-likelihood is known in closed form, behind a real processor."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from modegap.engine.models import LoadedModel, adopt
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "engine" / "tiny_models.py")))
ROWS = 2  # rows a sample; a sample's state is their sum


class LinearSoftmax(nn.Module):
    """q(y | z) = softmax(W sum_t z_t): text is not heard, so only the stored rows count."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        words, width = weight.shape
        self.embed = nn.Embedding(words, width)
        self.adapter = nn.Identity()
        self.head = nn.Linear(width, words, bias=False)
        with torch.no_grad():
            self.embed.weight.zero_()
            self.head.weight.copy_(torch.from_numpy(weight))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self, inputs_embeds: torch.Tensor, use_cache: bool = False, past_key_values: Any = None
    ) -> Any:
        return SimpleNamespace(logits=self.head(inputs_embeds.cumsum(dim=1)), past_key_values=None)


def decoder(weights: dict[str, list[float]], width: int) -> LoadedModel:
    """A decoder that hears the given words along the given directions, every other word not at all."""
    processor = tiny.llava().processor
    words = processor.tokenizer.convert_tokens_to_ids
    weight = np.zeros((tiny.TEXT["vocab_size"], width), dtype=np.float32)
    for word, direction in weights.items():
        weight[words(word)] = direction
    return adopt(LinearSoftmax(weight).eval(), processor, name="toy", points={"adapter_output": "adapter"})


def stored(
    path: Path,
    states: np.ndarray,
    texts: list[str],
    labels: dict[str, list[Any]],
    point: str = "adapter_output",
) -> ActivationStore:
    """A store whose samples have the given states [n, d], each split over its rows."""
    n, width = states.shape
    lengths = np.full(n, ROWS)
    plan = PointPlan(width, "both", lengths=lengths, dtype="float32", stream="adapter")
    ids = [f"s{i}" for i in range(n)]
    store = ActivationStore.create(path, StorePlan({point: plan}, ids, {"text": texts, **labels}))
    with store.writer() as writer:
        for i, state in enumerate(states.astype(np.float32)):
            rows = np.stack([state * 0.25, state * 0.75])
            media = np.full(ROWS, tiny.SPECIAL.index("<image>"))
            writer.put(
                i, {point: SampleRows(rows, rows.mean(axis=0))}, {"adapter": (media, np.full(ROWS, 2))}
            )
    return ActivationStore.open(path)
