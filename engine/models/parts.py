"""Parts of models that are put together here: a language model from given weights, devices, special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from modegap.engine.errors import EngineError

from .composite import Composite
from .hub import Source


@dataclass(frozen=True, slots=True)
class Placement:
    """In which dtype and where a model is loaded.

    Attributes:
        dtype: of all weights; None for that of the language model's checkpoint.
        device_map: as transformers takes it; the encoder and adapter go where the input embeddings are.
        options: other arguments of the language model's `from_pretrained` (`attn_implementation`, ...).
    """

    dtype: torch.dtype | None
    device_map: Any
    options: Mapping[str, Any]

    def arguments(self, dtype: torch.dtype | str) -> dict[str, Any]:
        """Keyword arguments of transformers' `from_pretrained` for the language model."""
        return {dtype_argument(): dtype, "device_map": self.device_map, **self.options}

    def place(self, model: Composite) -> None:
        """Gives every part the dtype of the language model, and the encoder the device of its embeddings."""
        weight = model.get_input_embeddings().get_parameter("weight")
        device = weight.device if weight.device.type != "meta" else torch.device("cpu")
        for name, part in model.named_children():
            if name != "language_model":
                part.to(device=device, dtype=weight.dtype)


def dtype_argument() -> str:
    """What `from_pretrained` calls the dtype: transformers 4.56 renamed `torch_dtype`."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def language_model(
    source: Source,
    placement: Placement,
    weights: Mapping[str, torch.Tensor],
    *,
    config: Any = None,
    vocabulary: int | None = None,
) -> Any:
    """A causal language model with the given weights, or its own repository's where there are none.

    Args:
        source: its repository.
        placement: dtype and devices.
        weights: by the names of transformers' checkpoints; empty to load the repository's.
        config: instead of the repository's own.
        vocabulary: rows of its embedding table, if not the configuration's.

    Raises:
        EngineError: it cannot be loaded, or the weights are not all of its.
    """
    transformers: Any = import_module("transformers")
    with source.remedied():
        if config is None:
            config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        if not weights:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                source.name, **source.arguments, **placement.arguments(placement.dtype or "auto")
            )
            return loaded.eval()
        if vocabulary is not None:
            config.vocab_size = vocabulary
        kind = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        dtype = placement.dtype or next(iter(weights.values())).dtype
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(weights),
            output_loading_info=True,
            **placement.arguments(dtype),
        )
    tied = getattr(config, "tie_word_embeddings", False)
    missing = [name for name in report["missing_keys"] if not (tied and name == "lm_head.weight")]
    wrong = [*missing, *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise EngineError(
            f"the language model's weights do not fit {source.name}: {len(wrong)} names differ ({wrong[0]}); "
            "use the published checkpoint"
        )
    return model.eval()


def special_token(tokenizer: Any, text: str) -> int:
    """The id of a special token, added to the tokenizer if it lacks it."""
    from tokenizers import AddedToken

    if text not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(text))
