"""What a result was measured on: machine, versions, commit; nothing that names the machine's owner."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .harness import Device

_PACKAGES = {"triton": ("triton",), "cupy": ("cupy", "cupy-cuda13x", "cupy-cuda12x"),
             "kvikio": ("kvikio-cu13", "kvikio-cu12", "kvikio"), "numpy": ("numpy",),
             "scikit-learn": ("scikit-learn",), "scipy": ("scipy",), "dask": ("dask",), "dask-ml": ("dask-ml",),
             "opacus": ("opacus",)}  # fmt: skip


def environment(device: Device, commit: str | None = None) -> dict[str, object]:
    """GPU and driver, or processor and threads; versions; the commit ("+" after it: with changes)."""
    return {
        **(_gpu() if device == "cuda" else {"cpu": _processor(), "threads": torch.get_num_threads()}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: found for name, tried in _PACKAGES.items() if (found := _version(tried))},
        "commit": commit or _commit(),
    }


def _gpu() -> dict[str, object]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = (
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    )
    return {"gpu": name, "driver": driver}


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for entry in facts.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(tried: Iterable[str]) -> str | None:
    for name in tried:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"

    def git(*args: str) -> str:
        found = subprocess.run(
            ["git", *args], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
        return found.stdout.strip()

    return (
        git("rev-parse", "--short", "HEAD")
        + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
        or "unknown"
    )
