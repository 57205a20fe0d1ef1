"""Provenance: what produced a store, in keys that every tool of the package understands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

VOLATILE = ("created", "versions")
"""Provenance keys that may differ between the run that began a store and the one that resumes it."""

_PACKAGES = ("modegap", "numpy", "torch", "transformers", "zarr")


def canonical_json(value: Any) -> bytes:
    """Return `value` as JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        ValueError: `value` holds something JSON cannot say (also NaN and infinity).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not representable as JSON: {error}") from None
    return text.encode()


def sha256(*parts: bytes | memoryview) -> str:
    """Return `sha256:` and the hexadecimal digest of the parts' bytes in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def installed_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Return the version of each installed package, without importing any."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(
    *,
    model: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    dataset: str | None = None,
    config: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a provenance record for `StorePlan`.

    Its standard keys are `model`, `revision`, `dtype`, `prompt`, `dataset`, `config_hash` (SHA-256 of the
    canonical JSON of `config`; None without one), `created` (UTC) and `versions`. `more` is kept as it is.
    All but `created` and `versions` must agree before a store is resumed.

    Raises:
        ValueError: a value cannot be written as JSON, or `more` names a key that is computed here.
    """
    computed = {
        "config_hash": None if config is None else sha256(canonical_json(dict(config))),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(),
    }
    if clash := sorted(set(more) & set(computed)):
        raise ValueError(f"provenance computes {', '.join(clash)} itself: leave it out")
    record = {"model": model, "revision": revision, "dtype": dtype, "prompt": prompt, "dataset": dataset}
    record |= computed | more
    canonical_json(record)
    return record
