"""What the block-wise reductions share: block size, scratch memory, kernel paths, configuration, the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar

import torch

from modegap.engine.devices import named
from modegap.engine.errors import EngineError
from modegap.kernels import KernelPath, Mode, Workspace

from .blocks import BlockBuffer

R = TypeVar("R")
P = ParamSpec("P")
T = TypeVar("T")

_MODES: tuple[Mode, ...] = ("precise", "fast", "exact")
_STATE_VERSION = 1
_HOST_ROWS = 2048
_DEVICE_ROWS = 16384


def accumulates(method: Callable[P, T]) -> Callable[P, T]:
    """Run a method outside of inference mode and of autograd, whatever mode the caller is in.

    Rows often come from a model that runs in inference mode, and an accumulator made there could not be added to
    anywhere else.
    """

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run


class BlockReduction(ABC, Generic[R]):
    """A reduction over fixed blocks of rows: the split into batches cannot change a bit of its result.

    Args:
        mode: arithmetic, as in `modegap.kernels.covariance_update`.
        block_rows: rows a block; None takes 2,048 on the host and 16,384 on a GPU.
        seed: of the choice of what is audited.
    """

    def __init__(self, mode: Mode, block_rows: int | None, seed: int) -> None:
        """Check the configuration."""
        if mode not in _MODES:
            raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(_MODES)}")
        if block_rows is not None and block_rows < 1:
            raise ValueError(f"block_rows: got {block_rows}, expected at least 1")
        self.mode: Mode = mode
        self.seed = seed
        self._block_rows = block_rows
        self._workspace = Workspace()
        self._paths: dict[tuple[str, str, str], KernelPath] = {}
        self._spent = False

    @abstractmethod
    def fresh(self) -> Self:
        """An instance of the same configuration that has seen nothing; it shares the shift, if known."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Add the rows of `other`, which stays as it was, and return self."""

    @abstractmethod
    def finalize(self) -> R:
        """The result. It takes over the accumulators: the reduction is spent afterwards."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """Everything seen, as tensors that share memory with the reduction."""

    @property
    def block_rows(self) -> int | None:
        """Rows a block, None until the device of the first rows decides."""
        return self._block_rows

    def boundary(self, device: str | torch.device | None = None) -> int:
        """Rows a block: parts that begin on its multiples and share the shift merge to one pass's blocks."""
        on_host = named(device).type == "cpu"
        return self._block_rows or (_HOST_ROWS if on_host else _DEVICE_ROWS)

    @property
    def shares_shift(self) -> bool:
        """Whether parts must share the shift to agree with one pass to 1e-10: not in mode exact."""
        return self.mode != "exact"

    def borrow(self, workspace: Workspace | None) -> None:
        """Compute in this scratch memory, which many reductions can share one after the other; None for its own."""
        self._workspace = Workspace() if workspace is None else workspace

    def _buffer(self, device: torch.device) -> BlockBuffer:
        rows = self.boundary(device)
        self._block_rows = rows
        return BlockBuffer(rows)

    def _note(self, path: KernelPath) -> None:
        self._paths[path.op, path.name, path.why] = path

    def _open(self) -> None:
        if self._spent:
            raise EngineError("this reduction is finalized: start another with fresh()")

    def _spend(self) -> None:
        self._open()
        self._spent = True
        self._workspace = Workspace()

    def _config(self, *more: int) -> torch.Tensor:
        return torch.tensor(
            [_STATE_VERSION, _MODES.index(self.mode), self.seed, *more, self._block_rows or 0]
        )

    def _load_config(self, found: torch.Tensor, *more: int) -> None:
        expected = self._config(*more)
        ours, theirs = expected.tolist(), found.tolist()
        if ours[:-1] != theirs[:-1] or (ours[-1] and theirs[-1] and ours[-1] != theirs[-1]):
            raise ValueError(
                f"state_dict: got configuration {theirs}, expected {ours} "
                "(version, mode, seed, sizes, block_rows); it was saved by a reduction with other options"
            )
        self._block_rows = theirs[-1] or self._block_rows

    def _check_mergeable(self, other: BlockReduction[R], *fields: str) -> None:
        self._open()
        other._open()
        for name in ("mode", "seed", *fields):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"merge: {name} is {theirs!r}, expected {ours!r}; create workers with fresh()"
                )


def too_few(point: str, count: int) -> EngineError:
    """The error of a covariance from fewer than two rows."""
    name = point or "this reduction"
    return EngineError(
        f"{name}: {count} rows, a covariance needs at least 2; extract more samples or select less"
    )
