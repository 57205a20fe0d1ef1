"""One way to attach a function to a hook point's tensor, for reading it and for replacing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modegap.engine.errors import EngineError

from .points import HookPoint

TensorFn = Callable[[torch.Tensor], torch.Tensor | None]


def attach(model: nn.Module, point: HookPoint, fn: TensorFn) -> list[RemovableHandle]:
    """Calls `fn` with the point's tensor on every forward; a tensor it returns replaces the old one.

    Returns:
        the handles to remove.
    """
    module = model.get_submodule(point.module_path)
    if point.token is not None:
        placeholders = _Placeholders(point, fn)
        return [
            model.register_forward_pre_hook(placeholders.read_tokens, with_kwargs=True),
            module.register_forward_pre_hook(placeholders.at_rows, with_kwargs=True),
        ]
    if point.pick == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args and isinstance(args[0], torch.Tensor):
                new = fn(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            key = next((key for key, value in kwargs.items() if isinstance(value, torch.Tensor)), None)
            if key is None:
                raise EngineError(f"hook point {point.name}: {point.module_path} was called without a tensor")
            new = fn(kwargs[key])
            return None if new is None else (args, {**kwargs, key: new})

        return [module.register_forward_pre_hook(before, with_kwargs=True)]

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        new = fn(_first(output, point))
        return None if new is None else _with_first(output, new)

    return [module.register_forward_hook(after)]


class _Placeholders:
    """The rows at the placeholder tokens of the embeddings [B, T, d] that a module is fed."""

    def __init__(self, point: HookPoint, fn: TensorFn) -> None:
        self.point, self.fn = point, fn
        self.mask: torch.Tensor | None = None

    def read_tokens(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        self.mask = torch.eq(tokens, self.point.token or 0) if isinstance(tokens, torch.Tensor) else None

    def at_rows(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = next((key for key in ("inputs_embeds", "hidden_states") if kwargs.get(key) is not None), None)
        x = kwargs[key] if key is not None else (args[0] if args else None)
        mask = self.mask
        if mask is None or not isinstance(x, torch.Tensor) or x.shape[:-1] != mask.shape:
            raise EngineError(
                f"hook point {self.point.name}: {self.point.module_path} was not fed one embedding a token of "
                'input_ids; name another module: points={"adapter_output": "module.path"}'
            )
        where = mask.to(x.device)
        new = self.fn(x[where])
        if new is None:
            return None
        x = x.masked_scatter(where[..., None], new)
        return (args, {**kwargs, key: x}) if key is not None else ((x, *args[1:]), kwargs)


@contextmanager
def attached(model: nn.Module, pairs: Sequence[tuple[HookPoint, TensorFn]]) -> Iterator[None]:
    """`attach` for the time of the `with` block: exactly these hooks are removed, also after an error."""
    handles: list[RemovableHandle] = []
    try:
        for point, fn in pairs:
            handles += attach(model, point, fn)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) for the time of the block; every module's own mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _first(output: Any, point: HookPoint) -> torch.Tensor:
    found = output
    if isinstance(output, tuple | list) and output:
        found = output[0]
    elif is_dataclass(output) or hasattr(output, "last_hidden_state"):  # transformers' ModelOutput
        found = getattr(output, "last_hidden_state", None)
    if not isinstance(found, torch.Tensor):
        raise EngineError(
            f"hook point {point.name}: {point.module_path} puts out {type(output).__name__} without a "
            "tensor in front; "
            "name a module that returns hidden states"
        )
    return found


def _with_first(output: Any, new: torch.Tensor) -> Any:
    if isinstance(output, torch.Tensor):
        return new
    if isinstance(output, tuple):
        return (new, *output[1:])
    if isinstance(output, list):
        return [new, *output[1:]]
    output.last_hidden_state = new
    return output
