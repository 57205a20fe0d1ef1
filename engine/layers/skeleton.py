"""A model whose decoder layers have no weights yet: everything else is in place on one device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.loading import load

from .checkpoint import CheckpointFiles, parameters_of

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def folder_of(name: str, revision: str | None) -> Path:
    """The folder of a model: itself, or its download.

    Raises:
        EngineError: no such model, or no network.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub raises its own, requests' and httpx' errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"cannot get the files of {name} ({reason}); download them with `hf download {name}`, or give a folder"
        ) from error


def empty(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    points: Mapping[str, str] | None = None,
) -> LoadedModel:
    """A model without weights (its parameters are on the `meta` device), its buffers as built.

    Raises:
        EngineError: as `load`; accelerate is not installed.
    """
    try:
        from accelerate import init_empty_weights  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise EngineError("planning and layer streaming need accelerate: pip install accelerate") from error

    def build(loader: Any, config: Any) -> nn.Module:
        wanted = _dtype(dtype, config)
        make = getattr(loader, "_from_config", None) or loader.from_config
        with init_empty_weights(include_buffers=False):
            try:
                model = make(config, dtype=wanted)
            except TypeError:  # transformers before 4.56
                model = make(config, torch_dtype=wanted)
        assert isinstance(model, nn.Module)
        return model

    return load(
        name, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, points=points, build=build
    )


def skeleton(files: CheckpointFiles, loaded: LoadedModel, device: torch.device) -> dict[int, dict[str, str]]:
    """Puts all weights but the decoder layers' and the head's in place; parameter names to keys by layer.

    Args:
        files: the checkpoint.
        loaded: from `empty`; changed.
        device: where the weights go.

    Raises:
        EngineError: no decoder was found, or a weight that the checkpoint lacks.
    """
    if loaded.structure is None:
        raise EngineError(f"{loaded.name} has no decoder layers that were found; layer streaming needs them")
    model, layers = loaded.model, loaded.structure.layers
    skipped = [layers, *_head(model)]
    placed = files.plan({name: p.shape for name, p in parameters_of(model, outside=skipped).items()})
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    for name, key in placed.items():
        set_parameter(model, name, files.read(key).to(device, dtypes[name], copy=device.type == "cpu"))
    _place_buffers(model, device, files)
    model.eval()
    return {
        k: files.plan({n: p.shape for n, p in parameters_of(model, inside=[f"{layers}.{k}"]).items()})
        for k in range(loaded.structure.n_layers)
    }


def set_parameter(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Makes `tensor` the parameter `name`, everywhere it is shared."""
    path, _, leaf = name.rpartition(".")
    old = model.get_submodule(path)._parameters[leaf]
    new = nn.Parameter(tensor, requires_grad=False)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[key] = new


def _head(model: nn.Module) -> list[str]:
    """The language model head, which no hook point needs, unless it shares its weights with something."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if not isinstance(head, nn.Module):
        return []
    own = set(map(id, head.parameters()))
    others = {id(p) for module in model.modules() if module is not head for p in module._parameters.values()}
    return [path for path, module in model.named_modules() if module is head and not own & others]


def _place_buffers(model: nn.Module, device: torch.device, files: CheckpointFiles) -> None:
    for path, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            if buffer is None:
                continue
            name = f"{path}.{leaf}" if path else leaf
            if leaf not in module._non_persistent_buffers_set and buffer.is_floating_point():
                buffer = files.read(files.plan({name: buffer.shape})[name]).to(buffer.dtype)
            module._buffers[leaf] = buffer.to(device)


def _dtype(dtype: str | torch.dtype | None, config: Any) -> torch.dtype:
    found: Any = dtype
    if found is None or found == "auto":
        found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        text = getattr(config, "text_config", None)
        found = found or getattr(text, "dtype", None) or torch.float32
    if isinstance(found, str):
        found = getattr(torch, found.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise EngineError(f"got dtype {dtype!r}; give float32, float16 or bfloat16")
    return found
