"""Which implementation of an operation runs, and why.

Every operation is a folder: `__init__.py` holds the public function, `reference.py` the oracle (plain torch
in fp64), `cpu.py` the path for the host, and where one pays `triton.py` or `cupy.py` for CUDA. An
implementation announces itself with `register`; the public function calls `run`, which picks the first one in
`ORDER` whose `supports` gives a reason. `last_path` and `paths` say what ran, so that a result can carry it.

`MODEGAP_KERNELS=reference` in the environment forces the oracle everywhere (slow; for doubting a number).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

import torch

Mode = Literal["precise", "fast", "exact"]
Supports = Callable[..., "str | None"]
F = TypeVar("F", bound=Callable[..., Any])

ORDER: Final = ("triton", "cupy", "cpu", "reference")
ENV: Final = "MODEGAP_KERNELS"
_CUDA_PROVIDERS: Final = ("triton", "cupy")


@dataclass(frozen=True, slots=True)
class KernelPath:
    """The implementation that ran: operation, name of the path, and the reason it was chosen."""

    op: str
    name: str
    why: str

    def __str__(self) -> str:
        """op: name (why)."""
        return f"{self.op}: {self.name} ({self.why})"


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    call: Callable[..., Any]
    supports: Supports


_registry: dict[str, list[_Entry]] = {}
_last: dict[str, KernelPath] = {}
_loaded: dict[str, str] = {}  # package -> why a CUDA provider of it is missing ("" when none is)


def register(op: str, name: str, *, supports: Supports) -> Callable[[F], F]:
    """Decorator that announces the decorated function as the path `name` of operation `op`.

    Args:
        op: the public function's name, e.g. "covariance_update".
        name: "triton", "cupy", "cpu", "reference", or another name, which is then tried before those.
        supports: called with the operation's arguments; returns the reason this path serves them
            ("sm_90, fp16 rows"), or None where it does not. Registering a name again replaces it.
    """

    def wrap(call: F) -> F:
        if call.__module__.startswith("kernels."):
            # a checkout's root is on sys.path and somebody asked for the package "kernels" (transformers does,
            # for one from the Hub): that second copy of these files must not take over from the first
            return call
        entries = [e for e in _registry.get(op, []) if e.name != name]
        entries.append(_Entry(name, call, supports))
        entries.sort(key=lambda e: ORDER.index(e.name) if e.name in ORDER else -1)
        _registry[op] = entries
        return call

    return wrap


def run(op: str, package: str, /, *args: Any, **kwargs: Any) -> tuple[Any, KernelPath]:
    """Run the best path of `op` for these arguments: (its result, the path that ran).

    Args:
        op: the operation.
        package: the operation's package (`__name__` of its `__init__`), where triton.py and cupy.py are
            looked for once, at the first call with a CUDA tensor.
        *args: the operation's arguments.
        **kwargs: its keyword arguments.

    Raises:
        ValueError: MODEGAP_KERNELS holds something other than "reference".
    """
    forced = os.environ.get(ENV, "")
    if forced not in ("", "reference"):
        raise ValueError(f"{ENV} is {forced!r}; expected 'reference' or unset")
    note = ""
    if any(isinstance(a, torch.Tensor) and a.is_cuda for a in args):
        note = _load_cuda_providers(package)
    for entry in _registry[op]:
        if forced and entry.name != "reference":
            continue
        why = entry.supports(*args, **kwargs)
        if why is not None:
            if forced:
                why = f"forced by {ENV}"
            path = KernelPath(op, entry.name, "; ".join(part for part in (why, note) if part))
            _last[op] = path
            return entry.call(*args, **kwargs), path
    raise RuntimeError(f"no path of {op} serves these arguments")


def _load_cuda_providers(package: str) -> str:
    """Import the package's CUDA implementations once; returns why one could not be had ("" if all could)."""
    if package not in _loaded:
        missing = []
        for name in _CUDA_PROVIDERS:
            if importlib.util.find_spec(f"{package}.{name}") is None:
                continue
            try:
                importlib.import_module(f"{package}.{name}")
            except ImportError as error:
                missing.append(f"{name} not usable: {error}")
        _loaded[package] = "; ".join(missing)
    return _loaded[package]


def last_path(op: str) -> KernelPath:
    """The path that ran last for `op`; KeyError where it has not run in this process."""
    return _last[op]


def paths() -> dict[str, KernelPath]:
    """The path that ran last, by operation, for every operation that has run in this process."""
    return dict(_last)


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` is one of the `Mode` literals."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(get_args(Mode))}")
