"""Trains the adapter to caption; encoder and decoder stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .grammar import PROMPT, caption
from .models import parts
from .scans import load_scans
from .stage import Plan, optimize, snap, stage_rng, training_images, training_scans
from .train_decoder import encode

PLAN = Plan(steps=800, batch=32, lr=3e-3)


def train_adapter(
    variant: str, model: Any, seed: int, plan: Plan, log: Callable[[str], None]
) -> dict[str, float]:
    """Trains the projector of a LLaVA model whose encoder and decoder are filled; returns its figures.

    The recipe, the initial weights, the scans, looks and captions are the same for both variants.
    """
    rng = stage_rng(seed, "adapter")
    model.eval().requires_grad_(False)
    projector = parts(model)["projector"]
    for layer in projector.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()  # from this stage's seed, not from whatever the caller drew before
    projector.requires_grad_(True)
    tokens, image_id = model.config.image_seq_length, model.config.image_token_index
    prompt = PROMPT.replace("<image>", "")

    def loss_of_step(_: int) -> torch.Tensor:
        indices = training_scans(plan.batch, rng)
        digits = load_scans()[1][indices]
        texts = [caption(int(digit), str(rng.integers(1 << 30))) for digit in digits]
        ids, mask = encode([f"{prompt} {text}" for text in texts])
        start = len(encode([prompt])[0][0]) - 1  # start token and prompt, without the end token
        image = torch.full((plan.batch, tokens), image_id)
        ids = torch.cat([ids[:, :1], image, ids[:, 1:]], dim=1)
        mask = torch.cat([torch.ones_like(image), mask], dim=1)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : start + tokens] = -100  # only the caption and its end are scored
        loss: torch.Tensor = model(
            input_ids=ids, attention_mask=mask, labels=labels, pixel_values=training_images(indices, rng)
        ).loss
        return loss

    loss = optimize(f"{variant} adapter", projector.parameters(), plan, loss_of_step, log)
    snap(projector)
    return {"training_loss": loss}
