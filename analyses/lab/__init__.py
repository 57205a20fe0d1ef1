"""A tiny LLaVA pair with its data: real transformers classes, trained in minutes, shipped as package data.

`plain` and `aligned` share one frozen text decoder and one adapter recipe; their encoders differ: one was
trained on pixels alone, the other contrastively with the captions. Importing this costs neither torch nor
transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .data import LabDataset
from .grammar import PROMPT

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

Variant = Literal["plain", "aligned"]
VARIANTS: tuple[Variant, ...] = ("plain", "aligned")

__all__ = ["PROMPT", "VARIANTS", "LabDataset", "Variant", "facts", "load", "load_text", "revision"]


def load(
    variant: Variant = "aligned", *, dtype: Any = None, device: Any = None, root: Path | str | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A lab model in eval mode and its processor; see `modegap.analyses.lab.models.load`."""
    from .models import load as load_variant

    return load_variant(variant, dtype=dtype, device=device, root=root)


def load_text(
    *, dtype: Any = None, device: Any = None, root: Path | str | None = None
) -> tuple[LlamaForCausalLM, Any]:
    """The frozen decoder as a text model in eval mode, and its tokenizer."""
    from .models import load_text as load_decoder

    return load_decoder(dtype=dtype, device=device, root=root)


def facts() -> dict[str, Any]:
    """What `lab.json` records of the shipped weights: headline numbers, seed, versions, hashes."""
    from .models import read_facts

    return read_facts()


def revision() -> str:
    """Which weights these are: the first twelve digits of their content hash."""
    return str(facts()["content_hash"])[:12]
