"""`modegap bench`: the registry of benchmarks in the checkout's bench/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modegap.analyses.table import Column, Table

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What is measured, and where.

    Attributes:
        case: families of cases, such as covariance; all of the device unless given.
        provider: words in providers' names, such as dask; all unless given. Ours always runs.
        device: cpu or cuda.
        widths: channels; the device's own (1024 and 4096, or 4096 and 8192) unless given.
        out: folder for the results as JSON and CSV; nothing is written unless given.
    """

    case: Sequence[str] = ()
    provider: Sequence[str] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    widths: Sequence[int] = ()
    out: str | None = None


CONFIGS = (Config,)

_COLUMNS = (
    "case",
    "width",
    "provider",
    Column("time", "ms", ".3f"),
    Column("error", format=".1e"),
    Column("ratio", format=".2f"),
    Column("floor", format=".2f"),
    "rate",
    "note",
)
_FIELDS = ("ms", "error", "speed_over_best_obvious", "fraction_of_floor")
_MEANING = (
    "ratio: time of the fastest provider that is not ours, over this one's; floor: fraction of the hardware's"
)


def run(config: Config, console: Console) -> Output:
    """Every provider's time beside ours; exit code 1 where our own result fails its correctness gate."""
    bench = _load()
    report = bench.run(
        config.device,
        names=config.case,
        providers=config.provider,
        widths=config.widths,
        say=console.say,
    )
    failures = bench.own_failures(report)
    notes = [
        _MEANING,
        ", ".join(f"{name} {value}" for name, value in report["environment"].items()),
        *failures,
    ]
    if config.out is not None:
        notes.append("results: " + ", ".join(map(str, bench.write(report, Path(config.out), config.device))))
    rows = [
        [
            record["case"],
            record["width"],
            record["provider"],
            *map(record.get, _FIELDS),
            _rate(record),
            _note(record),
        ]
        for record in report["results"]
    ]
    table = Table(f"benchmarks on {config.device}", _COLUMNS, rows, notes)
    return Output([table], report, exit_code=1 if failures else 0)


def _rate(record: dict[str, Any]) -> str:
    if "tflops" in record:
        return f"{record['tflops']:.3g} TFLOP/s"
    return f"{record['gb_per_s']:.3g} GB/s" if "gb_per_s" in record else ""


def _note(record: dict[str, Any]) -> str:
    for kind in ("failed", "missing"):
        if kind in record:
            return f"{kind}: {record[kind]}"
    return "" if record["accurate"] else "inaccurate"


def _load() -> Any:
    """The checkout's bench.run.

    Raises:
        ValueError: modegap was installed without its checkout.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "bench" / "registry.py").is_file():
        raise ValueError(
            "the benchmarks are not part of the installed package: "
            "clone the repository, `pip install -e .` in it, and run `modegap bench` from there"
        )
    # An entry point's sys.path lacks the checkout; first, so that another package named bench cannot answer.
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("bench.run")
