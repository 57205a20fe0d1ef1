"""Runs the registry and writes what it found as JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .ceilings import ceilings
from .environment import environment
from .harness import OURS, Device, Record, line, results
from .registry import WIDTHS, select

Report = dict[str, Any]

LEAST = 64
"""Width: the cases take up to 64 modes."""


def run(
    device: Device = "cpu",
    *,
    names: Sequence[str] = (),
    providers: Sequence[str] = (),
    widths: Sequence[int] = (),
    commit: str | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Measure the families: {"environment", "ceilings", "results"}, one record a provider.

    Args:
        device: cpu or cuda.
        names: families; all unless given.
        providers: words that select providers; all unless given.
        widths: channels; the device's own unless given.
        commit: what the checkout is, where git cannot tell.
        say: called with a line for every record.

    Raises:
        ValueError: an unknown family, a width below 64, or no GPU where one was asked for.
    """
    families = select(device, names)
    if any(width < LEAST for width in widths):
        raise ValueError(f"widths: got {min(widths)}, expected at least {LEAST}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got cuda, but torch sees no GPU here; take --device cpu")
    torch.manual_seed(0)
    top = ceilings(device)
    say("ceilings: " + ", ".join(f"{name} {value / 1e12:.3g} T/s" for name, value in top.items()))
    found: list[Record] = []
    for width in widths or WIDTHS[device]:
        for family in families:
            for case in family.cases(width, providers):
                records = results(case, top, device)
                found += records
                for record in records:
                    say(line(record))
            if device == "cuda":
                torch.cuda.empty_cache()
    return {"environment": environment(device, commit), "ceilings": top, "results": found}


def own_failures(report: Report) -> list[str]:
    """Our own providers that failed their gate: a benchmark that must not be believed."""
    return [
        f"{r['case']} at {r['width']}: {r['provider']}: {r['failed']}"
        for r in report["results"]
        if "failed" in r and r["provider"].startswith(OURS)
    ]


def write(report: Report, folder: Path, name: str) -> tuple[Path, Path]:
    """folder/name.json and folder/name.csv (environment and ceilings repeated on every row)."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    as_json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    shared = {**report["environment"], **{f"ceiling {k}": v for k, v in report["ceilings"].items()}}
    rows = [
        {**{k: v for k, v in record.items() if k != "spread_ms"}, **_spread(record), **shared}
        for record in report["results"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with as_csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return as_json, as_csv


def _spread(record: Record) -> dict[str, float]:
    if "spread_ms" not in record:
        return {}
    low, high = record["spread_ms"]
    return {"ms_min": low, "ms_max": high}
