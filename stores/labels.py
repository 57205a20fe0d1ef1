"""Label columns: a category, a number or a text for every sample, any of them missing.

On disk they are plain integer and float arrays, because the encoding of variable-length strings changed
between versions of zarr: numbers as float64 or int64, categories as codes with their names in an attribute,
texts as concatenated UTF-8 bytes with a start and a length for each sample.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import StoreError
from .origin import canonical_json, sha256
from .remote import Place
from .zarrjson import METADATA, column_files, group_json, read_column, read_metadata

Value = str | int | float | None
Kind = Literal["category", "number", "text"]

_INT_MISSING = int(np.iinfo(np.int64).min)
_LONGEST_CATEGORY = 64


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One label of every sample: str (category, text) or int and float (number), None = missing.

    Given a plain sequence, a store takes numbers for a "number"; strings are a "category" when none is longer
    than 64 characters and each occurs twice or more on average, else "text". Pass a `LabelColumn` to decide.
    """

    kind: Kind
    values: tuple[Value, ...]

    @property
    def n_missing(self) -> int:
        """How many samples have no value."""
        return sum(value is None for value in self.values)

    @property
    def categories(self) -> tuple[str, ...]:
        """The distinct strings, sorted; empty for numbers."""
        return tuple(sorted({value for value in self.values if isinstance(value, str)}))

    def codes(self) -> np.ndarray:
        """Return int32 [samples]: the index of each string in `categories`, -1 where it is missing.

        Raises:
            ValueError: the label is a number.
        """
        if self.kind == "number":
            raise ValueError("a number label has no categories: use numbers()")
        index: dict[Value, int] = {name: code for code, name in enumerate(self.categories)}
        return np.array([index.get(value, -1) for value in self.values], dtype=np.int32)

    def numbers(self) -> np.ndarray:
        """Return float64 [samples], NaN where the value is missing.

        Raises:
            ValueError: the label is not a number.
        """
        if self.kind != "number":
            raise ValueError(f"a {self.kind} label is not a number: use codes()")
        return np.array([math.nan if value is None else value for value in self.values], dtype=np.float64)


def label_column(name: str, values: Sequence[Any] | LabelColumn, ids: Sequence[str]) -> LabelColumn:
    """Return a checked column of one value for each of `ids`; a NaN counts as missing.

    Where one number is a float all are, since they share an array: an int is then the float of the same value.

    Raises:
        ValueError: wrong length, a value of another type, strings mixed with numbers, an infinite number, or an
        integer among floats that float64 cannot hold.
    """
    kind = values.kind if isinstance(values, LabelColumn) else None
    items: Sequence[Any] = values.values if isinstance(values, LabelColumn) else values
    if len(items) != len(ids):
        raise ValueError(f"label {name!r} needs one value a sample: got {len(items)}, expected {len(ids)}")
    cleaned = tuple(_clean(name, item, ids[index]) for index, item in enumerate(items))
    present = [value for value in cleaned if value is not None]
    strings = [value for value in present if isinstance(value, str)]
    if strings and len(strings) < len(present):
        raise ValueError(f"label {name!r} mixes strings and numbers: make them all strings or all numbers")
    if not strings and (present or kind == "number"):
        found: Kind = "number"
    else:
        short = all(len(value) <= _LONGEST_CATEGORY for value in strings)
        found = "category" if short and 2 * len(set(strings)) <= len(strings) else "text"
    if kind is not None and (kind == "number") != (found == "number") and present:
        raise ValueError(
            f"label {name!r} is declared a {kind} but holds {'strings' if strings else 'numbers'}"
        )
    if any(isinstance(value, float) for value in present):
        cleaned = tuple(_as_float(name, value, ids[index]) for index, value in enumerate(cleaned))
    return LabelColumn(kind or found, cleaned)


def _as_float(name: str, value: Value, sample: str) -> Value:
    if not isinstance(value, int):
        return value
    if int(float(value)) != value:
        raise ValueError(
            f"label {name!r} of sample {sample!r} is {value}, which float64 cannot hold, and others are floats: "
            f"make them all integers, or all strings"
        )
    return float(value)


def _clean(name: str, value: Any, sample: str) -> Value:
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    if isinstance(value, np.bool_):
        return int(value)
    if isinstance(value, numbers.Integral):
        if not _INT_MISSING < int(value) <= np.iinfo(np.int64).max:
            raise ValueError(f"label {name!r} of sample {sample!r} does not fit 64 bits: {value}")
        return int(value)
    if isinstance(value, numbers.Real | np.floating):
        if math.isinf(value):
            raise ValueError(f"label {name!r} of sample {sample!r} is infinite: use None for a missing value")
        return None if math.isnan(value) else float(value)
    raise ValueError(
        f"label {name!r} of sample {sample!r} must be str, int, float or None, got {type(value).__name__}"
    )


def utf8_rows(texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated UTF-8 bytes (uint8) and the length of each text (int64, -1 = missing).

    Raises:
        ValueError: a text holds a lone surrogate.
    """
    try:
        encoded = [None if text is None else text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!r:.80} is not valid Unicode: {error.reason}") from None
    lengths = np.array([-1 if text is None else len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(text or b"" for text in encoded), dtype=np.uint8), lengths


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Return the int64 start of each run of `lengths` (negative lengths count as 0)."""
    sizes = np.maximum(lengths, 0)
    starts: np.ndarray = np.cumsum(sizes) - sizes
    return starts


def digest(column: LabelColumn) -> str:
    """Return the SHA-256 of a column's kind and values."""
    return sha256(canonical_json([column.kind, column.values]))


def label_files(name: str, column: LabelColumn) -> Iterator[tuple[str, bytes]]:
    """Yield the (relative file, content) pairs that hold a label.

    Raises:
        ValueError: a text is not valid Unicode.
    """
    path = f"samples/{name}"
    if column.kind == "text":
        utf8, lengths = utf8_rows([None if value is None else str(value) for value in column.values])
        yield f"{path}/{METADATA}", group_json({"kind": "text"})
        yield from column_files(f"{path}/utf8", utf8, {})
        yield from column_files(f"{path}/start", starts_of(lengths), {})
        yield from column_files(f"{path}/length", lengths, {"missing": -1})
    elif column.kind == "category":
        attributes = {"kind": "category", "categories": list(column.categories), "missing": -1}
        yield from column_files(path, column.codes(), attributes)
    elif any(isinstance(value, float) for value in column.values):
        yield from column_files(path, column.numbers(), {"kind": "number", "missing": "NaN"})
    else:
        whole = [_INT_MISSING if value is None else int(value) for value in column.values]
        attributes = {"kind": "number", "missing": _INT_MISSING}
        yield from column_files(path, np.array(whole, dtype=np.int64), attributes)


def read_label(root: Place, name: str, kind: Kind) -> LabelColumn:
    """Return a label as `label_files` wrote it.

    Raises:
        DamagedChunkError: its files do not match their checksums.
        StoreError: its metadata contradict the store's plan.
    """
    path = f"samples/{name}"
    attributes = read_metadata(root / path).get("attributes", {})
    try:
        if attributes.get("kind") != kind:
            raise ValueError("another kind")
        return LabelColumn(kind, _read_values(root, path, kind, attributes))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise StoreError(
            f"label {name!r} should be a {kind}: its metadata are damaged, run `modegap repair`"
        ) from None


def _read_values(root: Place, path: str, kind: Kind, attributes: Mapping[str, Any]) -> tuple[Value, ...]:
    if kind == "text":
        utf8, lengths = read_column(root, f"{path}/utf8")[0].tobytes(), read_column(root, f"{path}/length")[0]
        starts = starts_of(lengths)
        if not np.array_equal(read_column(root, f"{path}/start")[0], starts):
            raise ValueError("texts that do not follow each other")
        runs = zip(starts.tolist(), lengths.tolist(), strict=True)
        return tuple(None if n < 0 else utf8[at : at + n].decode() for at, n in runs)
    column, _ = read_column(root, path)
    if column.ndim != 1:
        raise ValueError("more than one value a sample")
    if kind == "category":
        names = attributes["categories"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("categories that are no names")
        return tuple(None if code < 0 else names[code] for code in column.tolist())
    if column.dtype.kind == "f":
        return tuple(None if v != v else v for v in column.tolist())
    return tuple(None if v == _INT_MISSING else v for v in column.tolist())
