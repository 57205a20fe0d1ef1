"""What was found in a file or folder of arrays: rows by name, and what is known of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import LabelColumn

from .formats import COLUMNS, IDS, LENGTH, MODALITY, POOLED, Rows


@dataclass(slots=True)
class Content:
    """An opened source.

    Attributes:
        arrays: by name; slicing reads.
        metadata: of the whole.
        ids: of the samples, where the source says them.
        labels: one value a sample, where the source says them.
        streams: token sequence of each point, where the source says it.
        samples: how many of the rows are filled, where the source says it.
        points: names of the arrays that are points, where the source says it.
    """

    arrays: dict[str, Rows]
    metadata: dict[str, Any] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    labels: dict[str, Sequence[Any] | LabelColumn] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    samples: int | None = None
    points: tuple[str, ...] | None = None

    def add_sidecar(self, beside: Mapping[str, Any], where: object) -> None:
        """Take what the JSON file beside the arrays says; it knows better than they do.

        Raises:
            EngineError: it does not say it as `export_store` does.
        """
        try:
            if "provenance" in beside:
                self.metadata = dict(beside["provenance"])
            if "sample_ids" in beside:
                self.ids = list(beside["sample_ids"])
            if "labels" in beside:
                self.labels = {
                    str(name): LabelColumn(_kind(entry["kind"]), tuple(entry["values"]))
                    for name, entry in dict(beside["labels"]).items()
                }
            if "streams" in beside:
                self.streams = {str(point): str(name) for point, name in dict(beside["streams"]).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"{where} does not describe samples as an export does ({error}): mend it, or move it away"
            ) from None


def _kind(value: Any) -> Any:
    if value not in ("category", "number", "text"):
        raise ValueError(f"label kind {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class PointRows:
    """The rows of one point: of its tokens, pooled, or both; with what stood at each token."""

    tokens: Rows | None
    pooled: Rows | None
    lengths: np.ndarray | None
    ids: Rows | None
    modality: Rows | None

    @property
    def any(self) -> Rows:
        """Rows of either kind."""
        rows = self.pooled if self.tokens is None else self.tokens
        assert rows is not None
        return rows

    @property
    def samples(self) -> int:
        """How many samples these rows are of."""
        return len(self.lengths) if self.lengths is not None else int(self.any.shape[0])


def split(content: Content, wanted: tuple[str, ...] | None) -> dict[str, PointRows]:
    """Return the rows of each point.

    Raises:
        ValueError: a name that is not there, or nothing to import.
        EngineError: an array that is not rows of floats, or does not fit the others.
    """
    arrays = content.arrays
    rows = {name: array for name, array in arrays.items() if not name.endswith(tuple(COLUMNS))}
    names = dict.fromkeys(name.removesuffix(POOLED) if name.endswith(POOLED) else name for name in rows)
    wanted = wanted if wanted is not None else content.points
    if wanted is not None:
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"no array {missing[0]!r}: this source has {', '.join(sorted(names)) or 'none'}")
        names = dict.fromkeys(wanted)
    if not names:
        raise ValueError(
            "there are no arrays to import: save the rows of each hook point as floats [samples, width] under "
            "the point's name, as in np.savez(path, llm_final=rows), and import that"
        )
    return {name: _point(name, arrays) for name in names}


def _point(name: str, arrays: Mapping[str, Rows]) -> PointRows:
    pooled, length = arrays.get(name + POOLED), arrays.get(name + LENGTH)
    tokens = arrays.get(name)
    if length is None:
        if pooled is not None and tokens is not None:
            raise EngineError(
                f"{name!r} has pooled rows and others, but no {name + LENGTH} to divide them by"
            )
        tokens, pooled = None, tokens if pooled is None else pooled
    for array in (tokens, pooled):
        if array is not None and (len(array.shape) != 2 or np.dtype(array.dtype).kind != "f"):
            raise EngineError(
                f"array {name!r} is {array.dtype} {tuple(array.shape)}, expected floats [rows, width]: "
                f"choose others with --points"
            )
    if tokens is None or length is None:
        return PointRows(None, pooled, None, None, None)
    if len(length.shape) != 1 or np.dtype(length.dtype).kind not in "iu":
        raise EngineError(f"{name + LENGTH} is {length.dtype} {tuple(length.shape)}, expected integers")
    lengths = np.asarray(length[:]).astype(np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != tokens.shape[0]:
        raise EngineError(f"{name + LENGTH} does not add up to the {tokens.shape[0]} rows of {name!r}")
    if pooled is not None and (pooled.shape[0] != len(lengths) or pooled.shape[1] != tokens.shape[1]):
        raise EngineError(f"{name + POOLED} is {tuple(pooled.shape)}, which does not go with its token rows")
    columns = {}
    for suffix in (IDS, MODALITY):
        column = arrays.get(name + suffix)
        if column is not None and (
            tuple(column.shape) != (tokens.shape[0],) or np.dtype(column.dtype).kind not in "iu"
        ):
            raise EngineError(
                f"{name + suffix} is {column.dtype} {tuple(column.shape)}, expected one integer a row"
            )
        columns[suffix] = column
    return PointRows(tokens, pooled, lengths, columns[IDS], columns[MODALITY])
