"""timm's DINOv2 and SigLIP weights in transformers' vision models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError

from .backbones import Backbone

Weights = dict[str, torch.Tensor]
# A part's name in a transformer block of timm's, and under what names transformers' versions have it.
_BLOCK: dict[str, tuple[str, ...]] = {
    "norm1": ("norm1", "layer_norm1"),
    "norm2": ("norm2", "layer_norm2"),
    "attn.q": ("attention.attention.query", "attention.q_proj", "self_attn.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj", "self_attn.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj", "self_attn.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj", "self_attn.out_proj"),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_WHOLE: dict[str, tuple[str, ...]] = {
    "cls_token": ("embeddings.cls_token",),
    "reg_token": ("embeddings.register_tokens",),
    "patch_embed.proj.weight": (
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embedding.weight",
    ),
    "patch_embed.proj.bias": (
        "embeddings.patch_embeddings.projection.bias",
        "embeddings.patch_embedding.bias",
    ),
    "norm.weight": ("layernorm.weight", "post_layernorm.weight"),
    "norm.bias": ("layernorm.bias", "post_layernorm.bias"),
}


class PatchFeatures(nn.Module):
    """Patch rows after the last block but one, without final norm, class token or registers.

    That layer is what every published Prismatic model was trained on.
    """

    tower: Any

    def __init__(self, tower: nn.Module, prefix: int) -> None:
        """`prefix`: tokens in front of the patches."""
        super().__init__()
        self.tower = tower
        self.prefix = prefix

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to [B, patches, d]."""
        states = self.tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        found: torch.Tensor = states[-2][:, self.prefix :]
        return found


def patch_features(backbone: Backbone, weights: Mapping[str, torch.Tensor], repo: str) -> PatchFeatures:
    """A vision tower with a checkpoint's weights, in their dtype.

    Args:
        backbone: what it is.
        weights: timm's state dict; a prefix (`visual.trunk.`, `featurizer.`) and the pooling head, which
            Prismatic does not use, are dropped.
        repo: where they come from, for messages.

    Raises:
        EngineError: weights of another architecture.
    """
    found = _plain(weights)
    try:
        depth = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("blocks."))
        width = found["patch_embed.proj.weight"].shape[0]
        patch = found["patch_embed.proj.weight"].shape[-1]
        inner = found["blocks.0.mlp.fc1.weight"].shape[0]
        table = found["pos_embed"]
    except (KeyError, ValueError) as error:
        raise EngineError(
            f"{repo} does not hold a vision transformer in timm's layout ({error}); use the published one"
        ) from error
    shared = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": backbone.heads,
        "image_size": backbone.size,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "torch_dtype": found["patch_embed.proj.weight"].dtype,
    }
    table = resample(table, backbone.size // patch)
    if backbone.kind == "dinov2":
        tower, prefix = _dinov2(shared, inner, found["reg_token"].shape[1])
        zero = torch.zeros_like(table[:, :1])  # timm adds the class token's position to the token itself
        extra = {"embeddings.position_embeddings": torch.cat([zero, table], dim=1)}
    else:
        tower, prefix = _siglip(shared, inner), 0
        extra = {"embeddings.position_embedding.weight": table[0]}
    _fill(tower, {**_renamed(found, tower, repo), **extra}, repo)
    return PatchFeatures(tower.eval(), prefix)


def resample(table: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings [1, n * n, d] for a grid of `side` x `side` patches, as timm makes them.

    Bicubic with antialiasing, in fp32.
    """
    old = isqrt(table.shape[1])
    if old == side:
        return table
    grid = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(table.dtype)


def _dinov2(shared: dict[str, Any], inner: int, registers: int) -> tuple[nn.Module, int]:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    ratio = inner // shared["hidden_size"]
    config = Dinov2WithRegistersConfig(**shared, mlp_ratio=ratio, num_register_tokens=registers)
    return Dinov2WithRegistersModel(config), 1 + registers


def _siglip(shared: dict[str, Any], inner: int) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**shared, intermediate_size=inner)
    config.vision_use_head = False
    model: nn.Module = SiglipVisionModel(config)
    return model


def _plain(weights: Mapping[str, torch.Tensor]) -> Weights:
    prefix = next((name.split("blocks.0.")[0] for name in weights if "blocks.0." in name), "")
    found = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if not name.startswith(("attn_pool.", "head."))}


def _renamed(found: Weights, tower: nn.Module, repo: str) -> Weights:
    """transformers' names, without the prefix that some of its versions put in front."""
    known = {re.sub(r"^vision_model\.", "", name) for name in tower.state_dict()}
    layers = next(name for name in known if re.match(r"encoder\.layers?\.0\.", name)).split(".0.")[0]
    renamed: Weights = {}
    for name, value in found.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        scale = re.fullmatch(r"blocks\.(\d+)\.ls([12])\.gamma", name)
        if name == "pos_embed":
            continue
        if scale:
            renamed[f"{layers}.{scale[1]}.layer_scale{scale[2]}.lambda1"] = value
        elif block and block[2] == "attn.qkv":
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[_pick(f"{layers}.{block[1]}.", _BLOCK[f"attn.{part}"], f".{block[3]}", known)] = rows
        elif block and block[2] in _BLOCK:
            renamed[_pick(f"{layers}.{block[1]}.", _BLOCK[block[2]], f".{block[3]}", known)] = value
        elif name in _WHOLE:
            renamed[_pick("", _WHOLE[name], "", known)] = value
        else:
            raise EngineError(
                f"{repo} holds {name!r}, which its architecture does not have; use the published one"
            )
    return renamed


def _pick(before: str, names: tuple[str, ...], after: str, known: set[str]) -> str:
    return next(
        (before + name + after for name in names if before + name + after in known), before + names[0]
    )


def _fill(tower: nn.Module, weights: Weights, repo: str) -> None:
    """Puts the weights in; all of them, and all but DINOv2's mask token, which only training used."""
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    result = tower.load_state_dict({prefix + name: value for name, value in weights.items()}, strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("mask_token")]
    if missing or result.unexpected_keys:
        raise EngineError(
            f"{repo} lacks {len(missing)} weights ({', '.join(missing[:2])}) and has "
            f"{len(result.unexpected_keys)} too many ({', '.join(result.unexpected_keys[:2])}); use the published one"
        )
