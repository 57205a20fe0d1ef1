"""Builds and loads the lab's LLaVA models: transformers' own classes, in a small configuration."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .canvas import CANVAS
from .grammar import BOS, EOS, IMAGE, PAD, SPECIAL
from .tokens import read_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

VARIANTS: tuple[str, ...] = ("plain", "aligned")
WEIGHTS = Path(__file__).parent / "weights"

VISION: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": CANVAS,
    "patch_size": 8,
    "hidden_act": "gelu",
}
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": SPECIAL.index(PAD),
    "bos_token_id": SPECIAL.index(BOS),
    "eos_token_id": SPECIAL.index(EOS),
    "tie_word_embeddings": False,
}
LLAVA: dict[str, Any] = {
    "image_token_index": SPECIAL.index(IMAGE),
    "image_seq_length": (VISION["image_size"] // VISION["patch_size"]) ** 2,
    "vision_feature_layer": -2,  # LLaVA's: the last layer serves the pooled output only
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
}


def config_dict(vocab_size: int) -> dict[str, Any]:
    """What `config.json` holds: only what the lab sets; each transformers fills in its own defaults."""
    return {**LLAVA, "vision_config": VISION, "text_config": {**TEXT, "vocab_size": vocab_size}}


def vision_config(values: dict[str, Any]) -> Any:
    """The `CLIPVisionConfig` of a `config.json`."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(**values["vision_config"])


def text_config(values: dict[str, Any]) -> Any:
    """The `LlamaConfig` of a `config.json`."""
    from transformers import LlamaConfig

    return LlamaConfig(**values["text_config"])


def build_llava(values: dict[str, Any]) -> LlavaForConditionalGeneration:
    """A `LlavaForConditionalGeneration` with weights still to be filled."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    rest = {key: value for key, value in values.items() if not key.endswith("_config")}
    config = LlavaConfig(vision_config=vision_config(values), text_config=text_config(values), **rest)
    model = LlavaForConditionalGeneration(config)
    _greedy(model)
    return model


def build_decoder(values: dict[str, Any]) -> LlamaForCausalLM:
    """A `LlamaForCausalLM` with weights still to be filled."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(text_config(values))
    _greedy(model)
    return model


def _greedy(model: Any) -> None:
    model.generation_config.update(
        do_sample=False,
        max_new_tokens=16,  # the longest caption has 7 tokens and the end
        bos_token_id=TEXT["bos_token_id"],
        eos_token_id=TEXT["eos_token_id"],
        pad_token_id=TEXT["pad_token_id"],
    )


def parts(model: Any) -> dict[str, torch.nn.Module]:
    """Encoder, projector, decoder and head of a LLaVA model, in the layouts of transformers 4.4x to 5.x."""
    core = model if hasattr(model, "vision_tower") else model.model
    decoder = core.language_model
    return {
        "encoder": getattr(core.vision_tower, "vision_model", core.vision_tower),
        "projector": core.multi_modal_projector,
        "decoder": getattr(decoder, "model", decoder),
        "head": model.get_output_embeddings(),
    }


def fill_decoder(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Copies `LlamaForCausalLM` weights into the decoder and the head of a LLaVA model."""
    found = parts(model)
    found["head"].load_state_dict({"weight": tensors["lm_head.weight"]})
    found["decoder"].load_state_dict(
        {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    )


def fill_part(model: Any, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Copies the tensors named `<name>.*` into one part (`encoder` or `projector`) of a LLaVA model."""
    chosen = {
        key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
    }
    parts(model)[name].load_state_dict(chosen)


def make_processor(tokenizer: Any, values: dict[str, Any]) -> LlavaProcessor:
    """The `LlavaProcessor`: pixels to [-1, 1], `<image>` to one token a patch."""
    import transformers

    # transformers 5 has a PIL class beside the torchvision one; in 4.x the plain name is the PIL one.
    image_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    side = values["vision_config"]["image_size"]
    image_processor = image_class(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    build: Any = transformers.LlavaProcessor
    processor: LlavaProcessor = build(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=values["vision_config"]["patch_size"],
        vision_feature_select_strategy=values["vision_feature_select_strategy"],
        image_token=IMAGE,
        num_additional_image_tokens=1,  # CLS, which "default" drops again
    )
    return processor


def load(
    variant: str = "aligned", *, dtype: Any = None, device: Any = None, root: Path | str | None = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A lab model in eval mode and its processor.

    Args:
        variant: `plain` (encoder trained on pixels only) or `aligned` (trained with the captions).
        dtype: torch dtype or its name; float32 unless given. The shipped weights are float16 values.
        device: where to put the model; the CPU unless given.
        root: a folder that `modegap.analyses.lab.train --out` wrote; the shipped weights unless given.

    Raises:
        ValueError: no such variant.
    """
    if variant not in VARIANTS:
        near = difflib.get_close_matches(str(variant).lower(), VARIANTS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"got lab variant {variant!r}; expected one of {', '.join(VARIANTS)} (the nearest is {near!r})"
        )
    from safetensors.torch import load_file

    folder = _folder(root)
    values = json.loads((folder / "config.json").read_text())
    with _random_state_kept():
        model = build_llava(values)
    fill_decoder(model, load_file(folder / "decoder.safetensors"))
    tensors = load_file(folder / f"{variant}.safetensors")
    fill_part(model, "encoder", tensors)
    fill_part(model, "projector", tensors)
    model.config._name_or_path = model.name_or_path = f"modegap/lab-{variant}"
    processor = make_processor(read_tokenizer(folder / "tokenizer.json"), values)
    return _ready(model, dtype, device), processor


def load_text(
    *, dtype: Any = None, device: Any = None, root: Path | str | None = None
) -> tuple[LlamaForCausalLM, Any]:
    """The decoder that both variants share, as a text model in eval mode, and its tokenizer."""
    from safetensors.torch import load_file

    folder = _folder(root)
    with _random_state_kept():
        model = build_decoder(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "decoder.safetensors"))
    model.config._name_or_path = model.name_or_path = "modegap/lab-text"
    return _ready(model, dtype, device), read_tokenizer(folder / "tokenizer.json")


def read_facts(root: Path | str | None = None) -> dict[str, Any]:
    """The `lab.json` beside the weights."""
    found: dict[str, Any] = json.loads((_folder(root) / "lab.json").read_text())
    return found


def _folder(root: Path | str | None) -> Path:
    folder = WEIGHTS if root is None else Path(root)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"got {folder} without config.json; write it with python -m modegap.analyses.lab.train"
        )
    return folder


def _random_state_kept() -> Any:
    """Building a model draws initial weights: the caller's random state must not notice."""
    import torch

    return torch.random.fork_rng(devices=[])


def _ready(model: Any, dtype: Any, device: Any) -> Any:
    import torch

    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    return model.to(device=device, dtype=wanted).eval()
