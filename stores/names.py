"""Names of points, streams and labels: they become folders, so they are restricted."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")


def check_name(what: str, name: object) -> str:
    """Return `name` if it may name a `what` (point, stream, label) of a store.

    Allowed are 1 to 100 ASCII letters, digits, `_`, `-` and `.`, not starting with `-`, `.` or `__` (Zarr
    reserves the last): such a name means itself in an fnmatch glob and can leave no folder.

    Raises:
        ValueError: the name is anything else.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("__"):
        raise ValueError(
            f"{what} name {name!r} is not allowed: use 1 to 100 ASCII letters, digits, '_', '-' and '.', "
            f"starting with a letter, a digit or a single '_'"
        )
    return name


def check_names(what: str, names: Iterable[object]) -> tuple[str, ...]:
    """Return all `names`, checked; two that differ only in case would share a folder on some file systems.

    Raises:
        ValueError: a name is not allowed, or two of them are equal but for their case.
    """
    checked = tuple(check_name(what, name) for name in names)
    seen: dict[str, str] = {}
    for name in checked:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{what} names {other!r} and {name!r} differ only in case: rename one of them")
    return checked
