"""Trains the two vision encoders: `plain` from pixels alone, `aligned` from pixels and captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .canvas import SCAN
from .grammar import caption
from .models import LLAVA, TEXT, vision_config
from .scans import load_scans
from .stage import Plan, optimize, snap, stage_rng, training_images, training_scans
from .train_decoder import encode

PLANS = {
    "plain": Plan(steps=2200, batch=160, lr=1.5e-3),
    "aligned": Plan(steps=1500, batch=160, lr=1.5e-3),
}
TEMPERATURE = 0.1
MASKED = 0.4  # share of the patches hidden in a masked image


def train_encoder(
    variant: str, values: dict[str, Any], seed: int, plan: Plan, log: Callable[[str], None]
) -> tuple[Any, dict[str, float]]:
    """The encoder of a variant (a frozen `CLIPVisionModel`, weights rounded to float16) and its figures."""
    from transformers import CLIPVisionModel

    rng = stage_rng(seed, f"encoder/{variant}")
    encoder = CLIPVisionModel(vision_config(values)).train()
    objective: nn.Module
    if variant == "plain":
        objective = SelfSupervised(encoder)
    else:
        objective = Contrastive(encoder, values)

    def loss_of_step(_: int) -> torch.Tensor:
        loss: torch.Tensor = objective(training_scans(plan.batch, rng), rng)
        return loss

    loss = optimize(f"{variant} encoder", objective.parameters(), plan, loss_of_step, log)
    snap(encoder)
    encoder.eval().requires_grad_(False)
    return encoder, {"training_loss": loss}


def _head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, out))


class SelfSupervised(nn.Module):
    """Masked autoencoding plus prediction of another view of the same scan; sees neither text nor labels.

    The other view is the bare scan: its 64 cells are what all looks of it have in common, so predicting them
    asks for the shape. Reconstruction asks for everything else as well: the look stays readable in the patch
    tokens. (Instance discrimination, NT-Xent over 128 scans, stayed at chance for 300 steps from scratch.)
    """

    def __init__(self, encoder: Any) -> None:
        """The heads are thrown away after training."""
        super().__init__()
        width, side = encoder.config.hidden_size, encoder.config.patch_size
        self.encoder = encoder
        self.side = side
        self.pooled_head = _head(width, SCAN * SCAN)
        self.token_head = _head(width, SCAN * SCAN)
        self.pixel_head = nn.Linear(width, 3 * side * side)

    def forward(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> torch.Tensor:
        """The loss on these training scans under fresh looks."""
        images = training_images(indices, rng)
        bare = torch.from_numpy(load_scans()[0][indices]).float().flatten(1) / 8.0 - 1.0
        patches = F.unfold(images, self.side, stride=self.side).transpose(1, 2)  # [n, tokens, 3 * side^2]
        # One image in two is masked: the digit must not be guesswork in every image.
        share = MASKED * torch.from_numpy(rng.integers(0, 2, size=(len(indices), 1)))
        hidden = torch.from_numpy(rng.random(patches.shape[:2])) < share
        grid = int(patches.shape[1] ** 0.5)
        cover = hidden.view(-1, 1, grid, grid).repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)
        out = self.encoder(pixel_values=images.masked_fill(cover, 0.0), output_hidden_states=True)
        # The tokens that LLaVA will take: the shape must be in each of them, not in the CLS token alone.
        tokens = self.token_head(out.hidden_states[LLAVA["vision_feature_layer"]][:, 1:])
        shape = F.mse_loss(self.pooled_head(out.pooler_output), bare) + F.mse_loss(
            tokens, bare[:, None].expand_as(tokens)
        )
        error = (self.pixel_head(out.last_hidden_state[:, 1:]) - patches).square().mean(-1)
        loss: torch.Tensor = shape + error[hidden].mean() + error[~hidden].mean()
        return loss


class Contrastive(nn.Module):
    """CLIP: images against captions, with a small text tower that is thrown away afterwards."""

    def __init__(self, encoder: Any, values: dict[str, Any]) -> None:
        """The text tower has the lab's vocabulary, two layers and width 64."""
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        width = 64
        config = CLIPTextConfig(
            vocab_size=values["text_config"]["vocab_size"],
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=TEXT["pad_token_id"],
            bos_token_id=TEXT["bos_token_id"],
            eos_token_id=TEXT["eos_token_id"],
        )
        self.encoder = encoder
        self.text_tower = CLIPTextModel(config)
        self.pooled_projection = nn.Linear(encoder.config.hidden_size, width, bias=False)
        self.token_projection = nn.Linear(encoder.config.hidden_size, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / TEMPERATURE).log())

    def forward(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> torch.Tensor:
        """The symmetric InfoNCE loss on these training scans under fresh looks, nats."""
        digits = load_scans()[1][indices]
        texts = [caption(int(digit), str(rng.integers(1 << 30))) for digit in digits]
        ids, mask = encode(texts)
        sentences = F.normalize(self.text_tower(input_ids=ids, attention_mask=mask).pooler_output, dim=-1)
        out = self.encoder(pixel_values=training_images(indices, rng), output_hidden_states=True)
        # The tokens that LLaVA will take meet the captions as well: with the pooled output alone, a probe
        # found 79% of the digits in the mean token.
        tokens = out.hidden_states[LLAVA["vision_feature_layer"]][:, 1:].mean(1)
        images = torch.stack([self.pooled_projection(out.pooler_output), self.token_projection(tokens)])
        scores = F.normalize(images, dim=-1) @ sentences.T * self.log_scale.clamp(max=4.6).exp()
        # A batch repeats captions: equal texts share the credit, only different texts count as negatives.
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        codes = torch.tensor([numbers[text] for text in texts])
        target = (codes[:, None] == codes[None, :]).float()
        target = target / target.sum(1, keepdim=True)
        losses = [F.cross_entropy(each, target) + F.cross_entropy(each.T, target) for each in scores]
        return torch.stack(losses).mean() / 2
