"""A model whose decoder layers have no weights yet: everything else is in place on one device."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.loading import adopt, locate, model_class, published_here, read_processor
from modegap.engine.models.parts import dtype_argument

from .checkpoint import CheckpointFiles, parameters_of

_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def folder_of(name: str, revision: str | None) -> Path:
    """The folder of a model: itself, or its download.

    Raises:
        EngineError: no such model, or no network.
    """
    source = locate(name, revision, False, {})
    if source.local:
        return Path(source.name)
    from huggingface_hub import snapshot_download

    with source.remedied():
        return Path(snapshot_download(source.name, revision=revision, allow_patterns=list(_FILES)))


def empty(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    points: Mapping[str, str] | None = None,
) -> LoadedModel:
    """A model without weights (its parameters are on the `meta` device), its buffers as built.

    Unlike `modegap.engine.models.skeleton` it can be filled and run: rotary frequencies and such are there.

    Raises:
        EngineError: as `load`; accelerate is not installed; or a model that is put together from parts here,
            whose shapes its weights alone tell.
    """
    try:
        from accelerate import init_empty_weights  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise EngineError("planning and layer streaming need accelerate: pip install accelerate") from error
    source = locate(name, revision, trust_remote_code, {})
    if published_here(source):
        raise EngineError(
            f"{source.name} is put together from other models, which cannot be done without weights; load it "
            'whole, with device_map="auto" where it is large'
        )
    transformers: Any = import_module("transformers")
    with source.remedied():
        config = transformers.AutoConfig.from_pretrained(source.name, **source.arguments)
        kind = model_class(transformers, config)
        own = hasattr(kind, "_from_config")
        remote = {} if own else {"trust_remote_code": trust_remote_code}
        with init_empty_weights(include_buffers=False):
            make = kind._from_config if own else kind.from_config
            model = make(config, **{dtype_argument(): _dtype(dtype, config)}, **remote)
        processor = read_processor(transformers, source)
    commit = getattr(config, "_commit_hash", None) or revision
    return adopt(model.eval(), processor, name=source.name, points=points, revision=commit)


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
