"""Certificates: the facts that say how far a result can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegap.kernels import KernelPath

_PACKAGES = (
    "modegap",
    "torch",
    "numpy",
    "scipy",
    "triton",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "zarr",
    "transformers",
)


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that numbers depend on."""
    return dict(_versions())


def path_facts(paths: Iterable[KernelPath]) -> dict[str, dict[str, str]]:
    """Kernel paths as {operation: {"name", "why"}}; the several paths of one operation are joined."""
    facts: dict[str, dict[str, str]] = {}
    for path in paths:
        known = facts.get(path.op)
        if known is None:
            facts[path.op] = {"name": path.name, "why": path.why}
        elif path.name not in known["name"].split(" + ") or path.why not in known["why"].split("; "):
            name = (
                known["name"] if path.name in known["name"].split(" + ") else f"{known['name']} + {path.name}"
            )
            facts[path.op] = {"name": name, "why": f"{known['why']}; {path.why}"}
    return facts


@dataclass(frozen=True, slots=True)
class Certificate:
    """How a result was computed and from what.

    Attributes:
        mode: arithmetic: "precise", "fast", "exact", or what an analysis without kernels says.
        kernel_paths: {operation: {"name", "why"}}.
        count: rows.
        width: channels.
        rank: numerical rank of the covariance, where an analysis found one.
        n_over_d: count / width; filled in.
        overflow_count: values beyond fp16's 65504 among the rows, held by a per-chunk scale or in fp32.
        audit_error: max |S_ij - S64_ij| / sqrt(S64_ii S64_jj) over the audited channels, S64 computed in fp64
            alongside.
        store_hashes: {name: content hash of the store}.
        versions: {package: version}.
    """

    mode: str
    kernel_paths: Mapping[str, Mapping[str, str]]
    count: int
    width: int
    rank: int | None = None
    n_over_d: float | None = None
    overflow_count: int = 0
    audit_error: float | None = None
    store_hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        """Fill in n_over_d."""
        if self.n_over_d is None and self.width:
            object.__setattr__(self, "n_over_d", self.count / self.width)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON types; `Certificate(**facts)` restores them."""
        facts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        facts["kernel_paths"] = {op: dict(path) for op, path in self.kernel_paths.items()}
        facts["store_hashes"] = dict(self.store_hashes)
        facts["versions"] = dict(self.versions)
        return facts
