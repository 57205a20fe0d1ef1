"""Low-rank adapters in a decoder's linear layers, by peft: put in, saved in its format, taken out again."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modegap._names import did_you_mean
from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Which layers get an adapter, and how large (Hu et al., "LoRA", 2021: W x + alpha / rank B A x).

    Attributes:
        rank: of B A.
        alpha: numerator of the scale.
        dropout: share of an adapter's input that is dropped in training.
        modules: names of the decoder's linear layers, the last part of their paths.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapter:
    """An adapter that is in the model.

    Attributes:
        model: the `PeftModel` around the loaded model, whose layers it has replaced in place.
        parameters: name to weight, in a fixed order.
    """

    def __init__(self, model: Any) -> None:
        """`model` is a `PeftModel`."""
        self.model = model
        self.parameters: dict[str, nn.Parameter] = {
            name: weight for name, weight in model.named_parameters() if ".lora_" in name
        }

    def state(self) -> State:
        """A copy of the weights on the host."""
        # moved before it is cloned: a clone of what lies on the host already would be the weight itself
        return {name: weight.detach().to("cpu", copy=True) for name, weight in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies weights in.

        Raises:
            EngineError: they are of another adapter.
        """
        shapes = {name: weight.shape for name, weight in self.parameters.items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            raise EngineError(
                "the saved weights are of another model or another LoRA; give another folder, or remove it"
            )
        for name, weight in self.parameters.items():
            weight.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Writes peft's own format: adapter_config.json and adapter_model.safetensors, in a new folder."""
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            # "auto" would ask the Hub for the base model's vocabulary
            self.model.save_pretrained(str(aside), save_embedding_layers=False)
            aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def check_modules(loaded: LoadedModel, spec: LoraSpec) -> str:
    """A pattern for the paths in `adapted_part` of the decoder's layers that the adapter is for.

    Layers of the same names in the encoder do not match.

    Raises:
        EngineError: no decoder was found, peft is not there or in the model already, or a name is no linear
            layer of the decoder.
    """
    try:
        import peft
    except ImportError as error:
        raise EngineError("LoRA needs peft: pip install peft") from error
    if isinstance(loaded.model, peft.PeftModel):
        raise EngineError(
            f"{loaded.name} has a peft adapter already; merge it first: model.merge_and_unload(), then adopt"
        )
    if loaded.structure is None:
        raise EngineError(f"no decoder was found in {loaded.name}, so there is nothing to adapt")
    root = loaded.structure.decoder
    decoder = loaded.model.get_submodule(root) if root else loaded.model
    linear = {
        path.rpartition(".")[2]: None
        for path, module in decoder.named_modules()
        if path and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    for name in spec.modules:
        if name not in linear:
            raise EngineError(
                f"modules: the decoder of {loaded.name} has no linear layer {name!r}{did_you_mean(name, linear)}; "
                f"it has {', '.join(linear)}"
            )
    names = "|".join(re.escape(name) for name in spec.modules)
    inside = root.removeprefix(adapted_part(loaded)).removeprefix(".")
    return rf"{re.escape(inside)}\.(?:.*\.)?(?:{names})" if inside else rf"(?:.*\.)?(?:{names})"


def adapted_part(loaded: LoadedModel) -> str:
    """Path of the module that peft wraps, and that a saved adapter is loaded into; empty for the whole model.

    It is the outermost transformers model around the decoder: peft asks it for what other modules do not have.
    """
    from transformers import PreTrainedModel

    parts = loaded.structure.decoder.split(".") if loaded.structure is not None else []
    paths = (".".join(parts[:depth]) for depth in range(len(parts) + 1))
    return next((p for p in paths if isinstance(loaded.model.get_submodule(p), PreTrainedModel)), "")


@contextmanager
def fresh(loaded: LoadedModel, spec: LoraSpec, *, seed: int) -> Iterator[Adapter]:
    """A new adapter (B = 0: the model's outputs are unchanged) in the decoder while the block runs.

    All other weights are frozen meanwhile. The caller's random state is kept.

    Raises:
        EngineError: see `check_modules`.
    """
    pattern = check_modules(loaded, spec)
    from peft import LoraConfig

    writes = hasattr(_module(loaded), "prepare_inputs_for_generation")
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=pattern,
        bias="none",
        task_type="CAUSAL_LM" if writes else None,
    )
    with _put_back(loaded), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded.model.requires_grad_(False)
        with _put_in(loaded, config) as adapter:
            yield adapter


@contextmanager
def adapted(loaded: LoadedModel, folder: str | Path) -> Iterator[Adapter]:
    """The adapter that a folder holds in peft's format, in the model while the block runs; to be used, not trained.

    Raises:
        EngineError: no such adapter, or one of another model.
    """
    from peft import PeftConfig, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    if not (Path(folder) / "adapter_config.json").is_file():
        raise EngineError(f"{folder} holds no peft adapter (no adapter_config.json)")
    config = PeftConfig.from_pretrained(str(folder))
    with _put_back(loaded), _put_in(loaded, config) as adapter:
        try:
            found: Any = set_peft_model_state_dict(
                adapter.model, load_peft_weights(str(folder), device="cpu")
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise EngineError(f"the adapter in {folder} does not fit {loaded.name}: {reason}") from error
        lacking = [name for name in found.missing_keys if ".lora_" in name]
        if lacking or found.unexpected_keys:
            name = (*found.unexpected_keys, *lacking)[0]
            raise EngineError(f"the adapter in {folder} does not fit {loaded.name}: {name}")
        yield adapter


@contextmanager
def _quiet() -> Iterator[None]:
    """peft reads attributes of transformers models that transformers says will be renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _module(loaded: LoadedModel) -> Any:
    return loaded.model.get_submodule(adapted_part(loaded))


@contextmanager
def _put_in(loaded: LoadedModel, config: Any) -> Iterator[Adapter]:
    from peft import get_peft_model

    try:
        with _quiet():
            model = get_peft_model(_module(loaded), config)
    except ValueError as error:  # nothing that it is for is there
        reason = str(error).splitlines()[0]
        raise EngineError(f"the adapter does not fit {loaded.name}: {reason}") from error
    try:
        yield Adapter(model)
    finally:
        model.unload()


@contextmanager
def _put_back(loaded: LoadedModel) -> Iterator[None]:
    """Which weights ask for gradients, and what peft notes on the model, are as before when the block ends."""
    asking = [(weight, weight.requires_grad) for weight in loaded.model.parameters()]
    try:
        yield
    finally:
        for weight, wanted in asking:
            weight.requires_grad_(wanted)
        vars(_module(loaded)).pop("peft_config", None)  # older releases leave it
