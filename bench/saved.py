"""Results files as they are read again: by case, width and provider."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS = "modegap"
PARTIAL = " only"
"""How the names of providers end that compute a part of what ours does."""

Record = Mapping[str, Any]
Group = dict[int, dict[str, Record]]
"""Width -> provider -> record, of one case."""


def load(path: Path) -> dict[str, Any] | None:
    """A results file of the registry; None for a file that holds something else."""
    body = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(body, dict) or not {"environment", "ceilings", "results"} <= body.keys():
        return None
    return body if all("provider" in record for record in body["results"]) else None


def grouped(records: Iterable[Record]) -> dict[str, Group]:
    """The records by case, width and provider; a case whose name holds its width (K=4096) becomes K=d."""
    out: dict[str, Group] = {}
    for record in records:
        name = record["case"].replace(f"K={record['width']}", "K=d")
        out.setdefault(name, {}).setdefault(record["width"], {})[record["provider"]] = record
    return {name: dict(sorted(group.items())) for name, group in out.items()}


def own(providers: Mapping[str, Record]) -> Record | None:
    """Our first timed provider."""
    return next((r for name, r in providers.items() if name.startswith(OURS) and "ms" in r), None)


def best(providers: Mapping[str, Record]) -> Record | None:
    """The fastest provider that is not ours and computes all of it, however inaccurate."""
    others = (r for name, r in providers.items() if not name.startswith(OURS) and not name.endswith(PARTIAL))
    return min((r for r in others if "ms" in r), key=lambda r: r["ms"], default=None)


def bound_by_memory(record: Record, top: Mapping[str, float]) -> bool:
    """Whether the floor of a record is its bytes: then its fraction is its bandwidth over the copy's."""
    if "gb_per_s" not in record or "fraction_of_floor" not in record:
        return False
    share = record["gb_per_s"] * 1e9 / top["copy"]
    return bool(abs(share - record["fraction_of_floor"]) <= 1e-6 * share)
