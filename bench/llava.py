"""LLaVA in two sizes with random weights: the 7B shape for a GPU, a small one for any machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from modegap.engine.models import LoadedModel, adopt

BOS, MEDIA = 1, 31


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of the prompts."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    words: int
    vision: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    image: int
    patch: int
    question: int
    answer: int
    modes: int

    @property
    def rows(self) -> int:
        """Image tokens."""
        return (self.image // self.patch) ** 2


LARGE = Shape(4096, 32, 32, 11008, 32064, 1024, 24, 16, 4096, 336, 14, 7, 14, 11)
SMALL = Shape(64, 3, 4, 128, 128, 32, 2, 4, 64, 28, 7, 5, 4, 4)


def build(shape: Shape, device: str, dtype: torch.dtype, *, torchvision: bool = False) -> LoadedModel:
    """A LLaVA of random weights; made on the device without the slow initialisation.

    With `torchvision` that prepares the images where it is installed, as transformers does by itself, else Pillow.
    """
    vision = hf.CLIPVisionConfig(
        hidden_size=shape.vision,
        intermediate_size=shape.vision_mlp,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image,
        patch_size=shape.patch,
    )
    text = hf.LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.words,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=2,
    )
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=MEDIA, image_seq_length=shape.rows
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_initialisation():
            model = hf.LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model = model.to(device, dtype).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or "class_embedding" in name:
                weight.normal_(0, 0.02 if shape is LARGE else 0.2, generator=generator)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return adopt(model, _processor(shape, torchvision), name="bench/llava")


@contextmanager
def no_initialisation() -> Iterator[None]:
    """transformers skips its own initialisation; every weight is set afterwards."""
    flag = getattr(hf.initialization, "no_init_weights", None) if hasattr(hf, "initialization") else None
    flag = flag or getattr(hf.modeling_utils, "no_init_weights", None)
    if flag is None:
        yield
        return
    with flag():
        yield


def _processor(shape: Shape, torchvision: bool) -> Any:
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, MEDIA)), "<image>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<pad>")
    slow = getattr(hf, "CLIPImageProcessorPil", hf.CLIPImageProcessor)
    images = (hf.CLIPImageProcessor if torchvision and find_spec("torchvision") else slow)(
        size={"shortest_edge": shape.image}, crop_size={"height": shape.image, "width": shape.image}
    )
    return hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
