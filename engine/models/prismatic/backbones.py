"""The vision backbones and language models that published Prismatic checkpoints are made of.

Source: Karamcheti et al., "Prismatic VLMs" (arXiv 2402.07865), and the backbone ids in their checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HUB_REPO = "TRI-ML/prismatic-vlms"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, slots=True)
class Backbone:
    """One vision transformer.

    Attributes:
        repo: Hub id of its weights, in timm's layout; everything not given here is read off their shapes.
        kind: which of transformers' classes computes the same.
        heads: attention heads.
        size: side of the square image, pixels.
        mean, std: of the pixel values after scaling to [0, 1].
    """

    repo: str
    kind: Literal["dinov2", "siglip"]
    heads: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _dino(size: int) -> Backbone:
    return Backbone("timm/vit_large_patch14_reg4_dinov2.lvd142m", "dinov2", 16, size, *IMAGENET)


def _siglip(name: str, heads: int, size: int) -> Backbone:
    return Backbone(f"timm/{name}.webli", "siglip", heads, size, *HALVES)


_SO = "vit_so400m_patch14_siglip"
BACKBONES: dict[str, tuple[Backbone, ...]] = {
    "dinov2-vit-l": (_dino(224),),
    "siglip-vit-so400m": (_siglip(f"{_SO}_224", 16, 224),),
    "siglip-vit-so400m-384px": (_siglip(f"{_SO}_384", 16, 384),),
    "siglip-vit-b16-224px": (_siglip("vit_base_patch16_siglip_224", 12, 224),),
    "siglip-vit-b16-256px": (_siglip("vit_base_patch16_siglip_256", 12, 256),),
    "siglip-vit-b16-384px": (_siglip("vit_base_patch16_siglip_384", 12, 384),),
    "dinosiglip-vit-so-224px": (_dino(224), _siglip(f"{_SO}_224", 16, 224)),
    "dinosiglip-vit-so-384px": (_dino(384), _siglip(f"{_SO}_384", 16, 384)),
}
LANGUAGE_MODELS: dict[str, str] = {
    "vicuna-v15-7b": "lmsys/vicuna-7b-v1.5",
    "vicuna-v15-13b": "lmsys/vicuna-13b-v1.5",
    "llama2-7b-pure": "meta-llama/Llama-2-7b-hf",
    "llama2-13b-pure": "meta-llama/Llama-2-13b-hf",
}
