"""What can be wrong with a piece of a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged piece.

    Attributes:
        point: its point, its stream (kind "ids" and "modality"), or its path (kind "metadata").
        kind: "tokens", "pooled", "ids", "modality" or "metadata".
        chunk: index of the chunk (or shard); 0 for metadata.
        rows: first row and the one after the last; in a shard, those of its first damaged chunk.
        samples: first sample with one of these rows and the one after the last.
        reason: what is wrong.
    """

    point: str
    kind: str
    chunk: int
    rows: tuple[int, int]
    samples: tuple[int, int]
    reason: str

    def __str__(self) -> str:
        """Return the damage in one line."""
        if self.kind == "metadata":
            return f"metadata {self.point!r}: {self.reason}"
        return (
            f"{self.kind} {self.point!r} chunk {self.chunk} (rows {self.rows[0]} to {self.rows[1] - 1}, "
            f"samples {self.samples[0]} to {self.samples[1] - 1}): {self.reason}"
        )
