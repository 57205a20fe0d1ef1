"""`LoadedModel`: a model with its processor and hook points."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from modegap.engine.datasets.base import Modality, Sample

from .collate import Collator, Inputs
from .points import HookPoint, select
from .replay import ReplayEntry, replay_entry
from .structure import Structure


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model ready for capture; `model, processor = loaded` gives this and the processor.

    Attributes:
        model: the transformers model (or any module that takes the processor's output).
        processor: its processor or tokenizer.
        name: repository id, path, or the name given to `adopt`.
        revision: commit of the weights where known.
        family: transformers' model type (llava, qwen2_audio, llama, ...).
        modality: what the model takes beside text; `text` for none.
        points: hook point name to `HookPoint`.
        structure: module paths of decoder, encoder and adapter; None if only given points are known.
        collator: prompts and pads.
    """

    model: nn.Module
    processor: Any
    name: str
    revision: str | None
    family: str
    modality: Modality
    points: Mapping[str, HookPoint]
    structure: Structure | None
    collator: Collator

    def __iter__(self) -> Iterator[Any]:
        """Yields this model and its processor."""
        return iter((self, self.processor))

    def __repr__(self) -> str:
        """Name, family, modality and number of hook points: a module's own repr fills screens."""
        return f"LoadedModel({self.name!r}, {self.family}, {self.modality}, {len(self.points)} hook points)"

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the input embeddings (of the first placed weight, if offloaded)."""
        embedding = None
        if self.structure is not None:
            embedding = self.model.get_submodule(self.structure.embedding).weight
        if isinstance(embedding, torch.Tensor) and embedding.device.type != "meta":
            return embedding.device
        devices = (weight.device for weight in self.model.parameters())
        return next((device for device in devices if device.type != "meta"), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights (the first floating-point one)."""
        kinds = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        return next(kinds, torch.float32)

    @property
    def replay(self) -> ReplayEntry | None:
        """Where stored adapter rows enter the decoder again; None if no decoder was found."""
        token = None if self.modality == "text" else self.collator.media_token
        known, _ = self._parameters()
        axes = self._many_axes()
        return replay_entry(self.model, self.structure, self.points, token, many_axes=axes, parameters=known)

    @property
    def hidden_size(self) -> int | None:
        """Width of the decoder's hidden states; None if no decoder was found."""
        return None if self.structure is None else self.structure.hidden_size

    def select(self, names: Sequence[str]) -> list[HookPoint]:
        """The hook points that names or globs ask for.

        Raises:
            EngineError: an unknown one; suggests the nearest and lists what there is.
        """
        return select(self.points, names, self.name)

    def collate(
        self, samples: Sequence[Sample], *, target: bool = False, prompt: str | None = None
    ) -> Inputs:
        """A padded batch on the model's device (see `Collator.collate`).

        `tensors` fits `model(**tensors)`: floating-point ones in the model's dtype, and `position_ids`
        counting real tokens only, so that left padding shifts no position.
        """
        return self.place(self.collator.collate(samples, target=target, prompt=prompt))

    def place(self, inputs: Inputs) -> Inputs:
        """The batch on the model's device, with the arguments that its forward takes."""
        known, anything = self._parameters()
        device = self.device
        tensors: dict[str, torch.Tensor] = {}
        for name, value in inputs.tensors.items():
            # tokenizers return token types that decoders do not take, not even in **kwargs
            if name in known or (anything and name != "token_type_ids"):
                tensors[name] = (
                    value.to(device, self.dtype) if value.is_floating_point() else value.to(device)
                )
        if "position_ids" in known and "position_ids" not in tensors and not self._many_axes():
            count = inputs.attention.long().cumsum(dim=1) - 1
            tensors["position_ids"] = count.clamp(min=0).to(device)
        return replace(
            inputs,
            tensors=tensors,
            attention=inputs.attention.to(device),
            modality=inputs.modality.to(device),
            target_mask=inputs.target_mask.to(device),
        )

    def forward(self, inputs: Inputs, **options: Any) -> Any:
        """One forward of a placed batch without a key-value cache; `options` go to the model."""
        known, anything = self._parameters()
        if "use_cache" in known or anything:
            options.setdefault("use_cache", False)
        return self.model(**inputs.tensors, **options)

    def _parameters(self) -> tuple[frozenset[str], bool]:
        """Names that the forward takes, and whether it takes any other; a PEFT wrapper's own says nothing."""
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        found = inspect.signature(base.forward).parameters
        return frozenset(found), any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values())

    def _many_axes(self) -> bool:
        """Models with several position axes (time, height, width) count their own positions."""
        config = getattr(self.model, "config", None)
        text = getattr(config, "text_config", config)
        for holder in (text, config):
            for key in ("rope_parameters", "rope_scaling"):
                value = getattr(holder, key, None)
                if isinstance(value, dict) and "mrope_section" in value:
                    return True
        return False
