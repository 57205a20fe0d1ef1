"""What flows from a store (or a capture) into a reduction."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Magnitudes:
    """The largest magnitude of each channel of a batch, as stored, fp32 [d].

    Attributes:
        channels: where the rows are.
        host: the same numbers on the host.
    """

    channels: torch.Tensor
    host: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ActivationBatch:
    """Rows of one hook point, as stored, with the columns that say where each came from.

    Attributes:
        x: [n, d] stored values, fp16, bf16 or fp32, on any device. From `stream` it is a view of a buffer
            that is reused: valid until the next batch is asked for.
        start: global index of the first row.
        point: hook point.
        scale: power of two; true value = stored value * scale.
        sample: int64 [n] sample index of each row, on the host; None where it is not known.
        position: int32 [n] position of each row in its sample, on the host, or None.
        modality: uint8 [n] (0 none, 1 text, 2 image, 3 audio), on the host, or None.
        row: int64 [n] global row indices, on the host, where rows were left out; None where they are
            start, start + 1, ...
        stop: the first global row after this batch, for continuing; None means start + n.
        magnitudes: of x, where a reader has found them on a GPU: a reduction then need not wait for the GPU.
    """

    x: torch.Tensor
    start: int
    point: str
    scale: float = 1.0
    sample: torch.Tensor | None = None
    position: torch.Tensor | None = None
    modality: torch.Tensor | None = None
    row: torch.Tensor | None = None
    stop: int | None = None
    magnitudes: Magnitudes | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless x is a matrix and every column is as long as it."""
        if self.x.dim() != 2:
            raise ValueError(f"x: got shape {tuple(self.x.shape)}, expected [n, d]")
        for name in ("sample", "position", "modality", "row"):
            column = getattr(self, name)
            if column is not None and tuple(column.shape) != (len(self.x),):
                raise ValueError(f"{name}: got shape {tuple(column.shape)}, expected ({len(self.x)},)")

    def __len__(self) -> int:
        """Rows."""
        return len(self.x)

    @property
    def width(self) -> int:
        """Channels."""
        return self.x.shape[1]

    @property
    def end(self) -> int:
        """The first global row after this batch."""
        return self.start + len(self.x) if self.stop is None else self.stop

    def global_row(self, index: int) -> int:
        """Global index of the batch's row `index`."""
        return self.start + index if self.row is None else int(self.row[index])

    def values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """True values [n, d] in `dtype`: a copy, with the scale applied."""
        return self.x.to(dtype, copy=True).mul_(self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class PairedBatch:
    """The same rows at two points: row i of `x` and row i of `y` are one token (or one sample).

    Raises:
        ValueError: the batches differ in length, or in the samples or positions of their rows.
    """

    x: ActivationBatch
    y: ActivationBatch

    def __post_init__(self) -> None:
        """Check that the rows belong together."""
        if len(self.x) != len(self.y):
            raise ValueError(f"pair: got {len(self.x)} and {len(self.y)} rows, expected the same rows")
        for name in ("sample", "position"):
            ours, theirs = getattr(self.x, name), getattr(self.y, name)
            if ours is not None and theirs is not None and not torch.equal(ours, theirs):
                raise ValueError(
                    f"pair: {name} differs between {self.x.point!r} (row {self.x.start}) and "
                    f"{self.y.point!r} (row {self.y.start}), expected the same rows"
                )

    def __len__(self) -> int:
        """Rows."""
        return len(self.x)

    @property
    def end(self) -> int:
        """The first global row of `x` after this batch."""
        return self.x.end
