"""One set of rows as a reduction sees it: checks, magnitudes, the shift, staging and sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.errors import ValuesError
from modegap.kernels import Mode, Workspace, absmax, exact_up_to, one_thread, shift_of, stage, stage_and_sum

from .blocks import Block, placed

FP16_MAX = 65504.0
_PILOT_ROWS = 4096
_SUM_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Peak:
    """Magnitudes of a batch as stored: those of its channels [d], also on the host, and the largest."""

    channels: torch.Tensor
    host: torch.Tensor
    largest: float


class Side:
    """Rows of one hook point: admitted batch by batch, staged block by block.

    Attributes:
        count: rows staged (rows still waiting in a block buffer are not counted).
        shift: fp32 [d], the constant c; None until the first block.
        total: fp64 [d], the sum of x - c over the rows staged.
        absmax: [d], the largest magnitude among the rows admitted, true units.
        overflow: values beyond fp16's 65504 among the rows admitted.
        point: hook point of the rows, "" before the first batch.
    """

    def __init__(self, mode: Mode, *, every_mean: bool = False) -> None:
        """Rows for arithmetic `mode`; `every_mean` shifts all channels by their pilot mean."""
        self.mode: Mode = mode
        self.every_mean = every_mean
        self.point = ""
        self.dtype: torch.dtype | None = None
        self.count = 0
        self.overflow = 0
        self.shift: torch.Tensor | None = None
        self._limit: torch.Tensor | None = None  # of the shift, on the host; made when first asked for
        self.total = torch.empty(0, dtype=torch.float64)
        self.absmax = torch.empty(0)

    @property
    def width(self) -> int:
        """Channels; 0 before the first row."""
        return len(self.absmax)

    def admit(self, batch: ActivationBatch) -> Peak:
        """`look` and `note`: nothing has changed when this raises."""
        peak = self.look(batch)
        self.note(batch, peak)
        return peak

    def look(self, batch: ActivationBatch) -> Peak:
        """Check a batch and return its magnitudes; changes nothing.

        Raises:
            ValueError: point, width, dtype or device differ from earlier batches.
            ValuesError: a value is NaN or infinite (point, row and sample are named).
        """
        x = batch.x
        if self.dtype is not None:
            _same("point", batch.point, self.point or batch.point)
            _same("dtype", x.dtype, self.dtype)
        if self.width:
            _same("width", batch.width, self.width)
        if self.dtype is not None:
            _same("device", x.device, self.absmax.device)
        known = batch.magnitudes
        channels = absmax(x) if known is None else known.channels
        host = channels.cpu() if known is None else known.host  # the one wait for a GPU
        largest = float(host.amax()) if len(host) else 0.0
        if not largest < float("inf"):
            raise ValuesError(_not_finite(batch))
        return Peak(channels, host, largest)

    def note(self, batch: ActivationBatch, peak: Peak) -> None:
        """Take the magnitudes of a batch that passed `look`."""
        x = batch.x
        self.point, self.dtype = batch.point, x.dtype
        channels = peak.channels if batch.scale == 1.0 else peak.channels * batch.scale
        known = self.width > 0
        self.absmax = torch.maximum(placed(self.absmax, x.device), channels) if known else channels
        if peak.largest * batch.scale > FP16_MAX:
            self.overflow += int((x.abs() > FP16_MAX / batch.scale).sum())

    def stage(self, block: Block, workspace: Workspace, name: str) -> torch.Tensor:
        """The block's rows shifted and cast for the kernels [n, d]; counts them and adds them to `total`.

        On the host the result is fp32 (fp64 in mode exact). On a GPU fp16 rows stay fp16, since the
        subtraction is exact there for the channels that are shifted, unless a scale is in play.
        """
        n, d = block.x.shape
        device = block.x.device
        shift = self.settle(block)
        if not len(self.total):
            self.total = torch.zeros(d, dtype=torch.float64, device=device)
        self.total = placed(self.total, device)
        dtype = self._staged_dtype(block)
        if dtype is torch.float16 and self._outlying(block):
            dtype = torch.float32
        rows = workspace.get(name, (n, d), dtype, device)
        for part, scale in block.parts():
            if device.type == "cpu":
                stage(block.x[part], shift, scale, rows[part])
            else:
                self.total += stage_and_sum(block.x[part], shift, scale, rows[part])[0]
        if device.type == "cpu":
            with one_thread():
                self._sum(rows)
        self.count += n
        return rows

    def settle(self, block: Block) -> torch.Tensor:
        """The shift, on the block's device; chosen from the block where there is none yet."""
        if self.shift is None:
            self.shift = self._pilot(block)
        self.shift = placed(self.shift, block.x.device)
        return self.shift

    def _sum(self, rows: torch.Tensor) -> None:
        n, d = rows.shape
        if rows.dtype is torch.float32:
            # fp32 sums of 128 rows are good to 1e-7; torch's fp64 reduction is 10 times slower on the host.
            whole = n // _SUM_ROWS * _SUM_ROWS
            self.total += rows[:whole].view(-1, _SUM_ROWS, d).sum(1).sum(0, dtype=torch.float64)
            self.total += rows[whole:].sum(0)
        else:
            self.total += rows.sum(0, dtype=torch.float64)

    def _staged_dtype(self, block: Block) -> torch.dtype:
        if self.mode == "exact":
            return torch.float64
        plain = block.x.dtype is torch.float16 and all(scale == 1.0 for _, scale in block.runs)
        exact = plain and not self.every_mean
        return torch.float16 if exact and block.x.device.type != "cpu" else torch.float32

    def _outlying(self, block: Block) -> bool:
        """Whether a value is so far out that fp16 could not take its channel's shift off without losing bits of it.

        The pilot has not seen such values, or they would have widened its std. One of 2,000 in a channel with a
        mean and a std of 1 would bias that channel's variance by 1e-4: such a block goes through fp64.
        """
        assert self.shift is not None
        if self._limit is None:
            self._limit = exact_up_to(self.shift).cpu()
        peak = absmax(block.x).cpu() if block.peak is None else block.peak
        return bool((peak > self._limit).any())

    def _pilot(self, block: Block) -> torch.Tensor:
        values = block.x[:_PILOT_ROWS]
        if any(scale != 1.0 for _, scale in block.runs):
            values = values.double()
            for part, scale in block.parts():
                values[part] *= scale
        if not self.every_mean:
            return shift_of(values)
        mean = values.mean(0, dtype=torch.float64).half().float()
        return torch.where(mean.isfinite(), mean, torch.zeros_like(mean))

    def mean(self) -> torch.Tensor:
        """Mean of the rows staged, fp64 [d]."""
        assert self.shift is not None
        return self.shift.double() + self.total / self.count

    def delta(self, other: Side) -> torch.Tensor | None:
        """other's shift minus this one's, fp64 [d] (None where equal); adopts other's where this has none."""
        if self.width and other.width:
            _same("width", other.width, self.width)
        if other.shift is None:
            return None
        if self.shift is None:
            self.shift, self._limit = other.shift.clone(), None
        self.shift = self.shift.to(other.shift.device)
        delta = other.shift.double() - self.shift.double()
        return delta if bool(delta.any()) else None

    def add(self, other: Side, delta: torch.Tensor | None) -> None:
        """Add another side's rows, given `delta(other)`."""
        if other.width:
            theirs = other.absmax.to(self.absmax.device) if self.width else other.absmax.clone()
            self.absmax = torch.maximum(self.absmax, theirs) if self.width else theirs
            self.point, self.dtype = self.point or other.point, self.dtype or other.dtype
        self.overflow += other.overflow
        if other.count:
            moved = other.total if delta is None else other.total + other.count * delta
            self.total = self.total.to(moved.device) + moved if len(self.total) else moved.clone()
            self.count += other.count

    def to(self, device: torch.device) -> Side:
        """This side with its tensors on `device` (self where they are there already)."""
        if self.total.device == device or not self.width:
            return self
        moved = self.fresh()
        moved.load_state_dict({name: t.to(device) for name, t in self.state_dict().items()})
        moved.point, moved.dtype = self.point, self.dtype
        return moved

    def fresh(self) -> Side:
        """A side that has seen nothing, with this one's shift where it is known."""
        new = Side(self.mode, every_mean=self.every_mean)
        if self.shift is not None:
            new.shift = self.shift.clone()
        return new

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything seen, as tensors."""
        return {
            "count": torch.tensor(self.count),
            "overflow": torch.tensor(self.overflow),
            "shift": torch.empty(0) if self.shift is None else self.shift,
            "total": self.total,
            "absmax": self.absmax,
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a `state_dict`."""
        self.count, self.overflow = int(state["count"]), int(state["overflow"])
        self.shift = state["shift"].clone() if len(state["shift"]) else None
        self._limit = None
        self.total, self.absmax = state["total"].clone(), state["absmax"].clone()
        self.point, self.dtype = "", None


def _same(name: str, got: object, expected: object) -> None:
    if got != expected:
        raise ValueError(
            f"{name}: got {got}, expected {expected} as in the rows before; use one reduction for each"
        )


def _not_finite(batch: ActivationBatch) -> str:
    bad = torch.nonzero(~batch.x.isfinite().all(dim=1))
    index = int(bad[0])
    channel = int(torch.nonzero(~batch.x[index].isfinite())[0])
    value = float(batch.x[index, channel])
    sample = "" if batch.sample is None else f" (sample {int(batch.sample[index])})"
    return (
        f"{batch.point}: row {batch.global_row(index)}{sample} holds {value} in channel {channel}; "
        "re-extract that sample or leave it out (samples=...)"
    )
