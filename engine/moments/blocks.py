"""Rows collected into blocks of a fixed size, so that a result does not depend on how they were batched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from modegap.kernels import one_thread


def placed(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`: itself, with no call into torch, where it is there already.

    Each such call hands over the interpreter's lock, which the threads that read a store want too.
    """
    return x if x.device == device else x.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive rows as stored.

    Attributes:
        x: [n, d] stored values.
        runs: (rows, scale) of the consecutive pieces that x is made of.
        codes: a number for each row, or None.
        peak: largest magnitude of each channel of x [d], on the host, where it is known.
    """

    x: torch.Tensor
    runs: tuple[tuple[int, float], ...]
    codes: torch.Tensor | None
    peak: torch.Tensor | None = None

    def parts(self) -> Iterator[tuple[slice, float]]:
        """(rows, scale) of each run."""
        at = 0
        for rows, scale in self.runs:
            yield slice(at, at + rows), scale
            at += rows

    def to(self, device: torch.device) -> Block:
        """This block with its rows on `device`; codes stay where they are."""
        return Block(self.x.to(device), self.runs, self.codes)

    def columns(self, index: torch.Tensor) -> torch.Tensor:
        """True values of some channels, fp64 [n, len(index)]."""
        out = self.x.index_select(1, index).double()
        for rows, scale in self.parts():
            if scale != 1.0:
                out[rows] *= scale
        return out


class BlockBuffer:
    """Yields a `Block` whenever `rows` rows have come together; holds fewer than that.

    Rows that arrive aligned with a block, in one piece, are passed on without a copy.
    """

    def __init__(self, rows: int) -> None:
        """Blocks of `rows` rows."""
        self.rows = rows
        self._x: torch.Tensor | None = None
        self._codes: torch.Tensor | None = None
        self._runs: list[tuple[int, float]] = []
        self._held = 0

    def __len__(self) -> int:
        """Rows held."""
        return self._held

    def push(
        self,
        x: torch.Tensor,
        scale: float,
        codes: torch.Tensor | None = None,
        peak: torch.Tensor | None = None,
    ) -> Iterator[Block]:
        """Take rows of one scale; use each block before asking for the next, its memory is reused.

        `peak` [d], the largest magnitudes of x on the host if they are known, goes with a block that is all of x.
        """
        if self._x is not None and self._x.device != x.device:
            self._x = self._x.to(x.device)  # a state saved on one device goes on on another
        at, n = 0, len(x)
        while at < n:
            take = min(self.rows - self._held, n - at)
            part, tags = x[at : at + take], None if codes is None else codes[at : at + take]
            at += take
            if take == self.rows:
                yield Block(part, ((take, scale),), tags, peak if take == n else None)
                continue
            self._keep(part, scale, tags)
            if self._held == self.rows:
                block = self.partial()
                self._runs, self._held = [], 0
                yield block

    def _keep(self, part: torch.Tensor, scale: float, tags: torch.Tensor | None) -> None:
        if self._x is None:
            self._x = torch.empty((self.rows, part.shape[1]), dtype=part.dtype, device=part.device)
        if tags is not None and self._codes is None:
            self._codes = torch.empty(self.rows, dtype=tags.dtype, device=tags.device)
        stop = self._held + len(part)
        with one_thread():  # torch's own threads would spin on the kernels' processors
            self._x[self._held : stop] = part
        if tags is not None and self._codes is not None:
            self._codes[self._held : stop] = tags
        if self._runs and self._runs[-1][1] == scale:
            self._runs[-1] = (self._runs[-1][0] + len(part), scale)
        else:
            self._runs.append((len(part), scale))
        self._held = stop

    def partial(self) -> Block:
        """The rows held so far (at least one), as a view; they stay held."""
        assert self._x is not None
        codes = None if self._codes is None else self._codes[: self._held]
        return Block(self._x[: self._held], tuple(self._runs), codes)

    def clear(self) -> None:
        """Drop the rows and the memory."""
        self._x = self._codes = None
        self._runs, self._held = [], 0

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without the memory for rows where none is held."""
        state = dict(self.__dict__)
        if not self._held:
            state["_x"] = state["_codes"] = None
        return state

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Rows held, their scales and codes (empty tensors where there are none)."""
        if not self._held:
            return {"x": torch.empty(0, 0), "scale": torch.empty(0), "codes": torch.empty(0)}
        block = self.partial()
        scales = [torch.full((rows,), scale, dtype=torch.float64) for rows, scale in block.runs]
        codes = torch.empty(0) if block.codes is None else block.codes
        return {"x": block.x, "scale": torch.cat(scales), "codes": codes}

    def load_state_dict(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        """Hold the rows of a `state_dict`, on `device`."""
        self.clear()
        x, scale, codes = (state[name] for name in ("x", "scale", "codes"))
        at = 0
        while at < len(x):
            same = int((scale[at:] != scale[at]).to(torch.uint8).argmax()) or len(x) - at
            tags = codes[at : at + same].to(device) if len(codes) else None
            self._keep(x[at : at + same].to(device), float(scale[at]), tags)
            at += same
