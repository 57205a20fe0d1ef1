"""`edit`: change the tensor at a hook point while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from modegap.engine.errors import EngineError

from .hooks import attached
from .loaded import LoadedModel


@contextmanager
def edit(loaded: LoadedModel, point: str, fn: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While the block runs, every forward goes on with `fn(tensor)` in place of the tensor at `point`.

    Args:
        loaded: the model.
        point: a hook point's name.
        fn: gets the tensor (usually [batch, positions, width], padding included) and returns one of the same
            shape; it is cast back to the model's dtype. Gradients flow through it.

    Raises:
        EngineError: an unknown point, or `fn` changed the shape. The hook is removed in every case.
    """
    (found,) = loaded.select([point])

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        new = fn(tensor)
        if new.shape != tensor.shape:
            raise EngineError(
                f"the edit at {point} returned shape {list(new.shape)}, got {list(tensor.shape)}; keep the "
                "shape"
            )
        return new.to(dtype=tensor.dtype, device=tensor.device)

    with attached(loaded.model, [(found, replace)]):
        yield
