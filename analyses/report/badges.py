"""Certificates: the facts that say how far a number can be trusted, as badges under each result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .text import cell, is_number, number

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate

Tone = Literal["ok", "warn", "plain"]

MIN_ROWS_PER_DIMENSION = 5.0  # below it the small eigenvalues are mostly noise
AUDIT_LIMITS = {"precise": 3e-6, "exact": 1e-9, "fast": 1e-3}  # the accuracy contract of each mode


@dataclass(frozen=True, slots=True)
class Badge:
    """A fact about a result: `label value`, its tone, and a sentence that explains it."""

    label: str
    value: str
    tone: Tone
    why: str


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate: its result's name, the part it speaks of (such as "text"), its badges and all facts."""

    name: str
    part: str
    badges: Sequence[Badge]
    facts: Sequence[tuple[str, str]]


def certificates(result: Any, name: str) -> list[Certified]:
    """The certificates of a result: `certificate`, then fields such as `text_certificate` (part "text")."""
    fields = [field.name for field in dataclasses.fields(result)] if dataclasses.is_dataclass(result) else []
    parts = {"": "certificate"}
    parts |= {field.removesuffix("_certificate"): field for field in fields if field.endswith("_certificate")}
    found = []
    for part, field in parts.items():
        certificate: Certificate | None = getattr(result, field, None)
        if certificate is not None:
            facts = certificate.to_json()
            pairs = [(key.replace("_", " "), cell(fact)) for key, fact in flatten(facts)]
            found.append(Certified(name, part.replace("_", " "), badges(facts), pairs))
    return found


def badges(facts: Mapping[str, Any]) -> list[Badge]:
    """The badges of a certificate's facts, in a fixed order; a fact that is missing gives none."""
    found = []
    mode = facts.get("mode")
    if mode is not None:
        found.append(Badge("mode", str(mode), "plain", "arithmetic of the covariance kernels"))
    audit = facts.get("audit_error")
    if audit is not None and is_number(audit):
        limit = AUDIT_LIMITS.get(str(mode), AUDIT_LIMITS["precise"])
        why = f"largest error of a covariance, in standard deviations, against fp64; limit {number(limit, 1)}"
        found.append(Badge("fp64 audit", number(audit, 2), "ok" if audit <= limit else "warn", why))
    count, width, ratio = facts.get("count"), facts.get("width"), facts.get("n_over_d")
    if ratio is None and is_number(count) and is_number(width) and width:
        ratio = count / width
    if ratio is not None and is_number(ratio):
        enough = ratio >= MIN_ROWS_PER_DIMENSION
        why = "rows per dimension; below 5 the small eigenvalues are mostly noise"
        size = f" ({cell(count)} / {cell(width)})" if is_number(count) and is_number(width) else ""
        found.append(Badge("n/d", number(ratio, 3) + size, "ok" if enough else "warn", why))
    rank = facts.get("rank")
    if is_number(rank):
        of = f" of {cell(width)}" if is_number(width) else ""
        found.append(Badge("rank", cell(rank) + of, "plain", "modes above the noise floor"))
    overflow = facts.get("overflow_count")
    if is_number(overflow):
        why = "values beyond the range of fp16 among the rows, held by a scale or in fp32"
        found.append(Badge("overflow", cell(overflow), "warn" if overflow else "ok", why))
    paths: Mapping[str, Mapping[str, str]] = facts.get("kernel_paths") or {}
    if paths:
        names = dict.fromkeys(path["name"] for path in paths.values())
        why = "; ".join(f"{op}: {path['name']} ({path['why']})" for op, path in paths.items())
        found.append(Badge("kernels", ", ".join(names), "plain", why))
    hashes: Mapping[str, str] = facts.get("store_hashes") or {}
    if hashes:
        short = (str(digest).rpartition(":")[2][:10] for digest in hashes.values())
        why = "; ".join(f"{name}: {digest}" for name, digest in hashes.items())
        found.append(Badge("store", ", ".join(short), "plain", why))
    return found


def flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (dotted key, value) pairs, in order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
            parts = {
                str(i): part if isinstance(part, Mapping) else {"": part} for i, part in enumerate(value)
            }
            pairs += flatten(parts, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
