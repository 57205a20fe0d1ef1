"""`Replay`: losses, gradients and divergences of the decoder over stored rows."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.errors import EngineError
from modegap.engine.models.backoff import Backoff
from modegap.engine.models.edit import edit as edited
from modegap.engine.models.fused import fused_layers
from modegap.engine.models.hooks import evaluating
from modegap.engine.models.loaded import LoadedModel

from .ahead import Rows, read_ahead
from .decoder import Decoder, frozen, mean_by_item, token_log_probs
from .source import ReplaySource

log = logging.getLogger(__name__)

Float = NDArray[np.float64]
# rows [R, d] and the number in `source.items` of the sample that each belongs to, int64 [R] -> rows [R, d]
Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]
Made = TypeVar("Made")
Item = TypeVar("Item")
Unit = tuple[int, int]

# Powers of two tried in turn: the gradient of an fp16 model underflows unscaled and may overflow scaled.
_FP16_SCALES = (1024.0, 32.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class GradientBatch:
    """Gradients of a batch of samples.

    Attributes:
        members: numbers of the samples in `source.items`.
        g: gradient of each sample's mean target log-probability with respect to its rows, [sum t, d].
        cu_seqlens: int64 [B + 1]; sample b owns rows cu_seqlens[b] to cu_seqlens[b + 1].
        log_q: mean target log-probability, nats a token, fp64 [B].
        scale: power of two that g is multiplied by.
    """

    members: tuple[int, ...]
    g: torch.Tensor
    cu_seqlens: torch.Tensor
    log_q: torch.Tensor
    scale: float


class Replay:
    """Replays a source. Batches are made of samples of similar length; one that does not fit is halved.

    Attributes:
        retried: (ids, next size) of every batch that did not fit into memory.
        failures: (id, reason) of samples that could not be computed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        source: ReplaySource,
        *,
        batch_size: int = 8,
        share: bool = True,
        fused: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """`share` lets sequences with the same beginning share its keys and values, `fused` see `fused_layers`.

        Raises:
            ValueError: a batch size below one.
            EngineError: the model cannot be fed with embeddings.
        """
        if batch_size < 1:
            raise ValueError(f"got batch_size {batch_size}; expected at least 1")
        self.loaded, self.source, self.batch_size = loaded, source, batch_size
        self.share, self.fused = share, fused
        self.decoder = Decoder(loaded)
        self.progress = progress or (lambda done, total: None)
        self.retried: list[tuple[tuple[str, ...], int]] = []
        self.failures: list[tuple[str, str]] = []
        self._recent: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._ahead: Rows = {}
        lengths = np.array([len(item) for item in source.items])
        self.order: list[int] = np.argsort(-lengths, kind="stable").tolist()

    def rows(self, number: int) -> torch.Tensor:
        """Rows of sample `number` of the source, on the decoder's device in its dtype [t, d]; not to be written to.

        Those of the last few samples are kept, since the conditions of one sample may take several batches.
        """
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        rows = self._ahead.pop(number, None)
        rows = self._read(number) if rows is None else rows
        # to the device first: a copy that also converts does so on the host, milliseconds for 576 rows
        on_device = rows.to(self.decoder.device, non_blocking=rows.is_pinned())
        found = on_device.to(self.loaded.dtype)
        self._recent[number] = found
        while len(self._recent) > self.batch_size:
            self._recent.popitem(last=False)
        return found

    def ahead(self, batches: Sequence[Sequence[Item]]) -> Generator[Sequence[Item], None, None]:
        """The batches in order; while the caller works on one, the rows of the next are read for `rows`.

        Args:
            batches: numbers of samples in `source.items`, or (number, condition).
        """
        numbers = [[_number(unit) for unit in batch] for batch in batches]
        pin = self.decoder.device.type == "cuda"
        with closing(read_ahead(numbers, self._read, pin=pin)) as coming:
            try:
                for batch, self._ahead in zip(batches, coming, strict=True):
                    yield batch
            finally:
                self._ahead = {}

    def _read(self, number: int) -> torch.Tensor:
        return self.source.rows(self.source.items[number])

    @torch.no_grad()
    def losses(
        self,
        edits: Sequence[Edit | None] = (None,),
        *,
        members: Sequence[int] | None = None,
        span: tuple[int, int] | None = None,
    ) -> Float:
        """Mean cross-entropy of each sample's target tokens under each edit, nats a token: fp64 [edits, n].

        Conditions of a sample run in the same batches, and its rows are read once for all of them.

        Args:
            edits: functions of the stored rows; None changes nothing.
            members: numbers of the samples to run, whose columns are returned in rising order; all unless given.
            span: only the batches of these numbers (first, last), for a share of the work; NaN elsewhere.

        Raises:
            EngineError: a sample that does not fit into memory alone.
        """
        members = self.order if members is None else sorted(members, key=self.order.index)
        found = np.full((len(edits), len(self.source)), np.nan)
        todo = len(edits) * len(members)
        done = 0
        for part, values in self._batches(
            [(number, c) for number in members for c in range(len(edits))],
            lambda part: self._losses(part, edits),
            span=span,
        ):
            for (number, c), value in zip(part, values, strict=True):
                found[c, number] = value
            done += len(part)
            self.progress(done, todo)
        return found[:, sorted(members)]

    @torch.no_grad()
    def losses_inside(
        self,
        point: str,
        edits: Sequence[Callable[[torch.Tensor], torch.Tensor] | None],
        span: tuple[int, int] | None = None,
    ) -> Float:
        """As `losses`, with the edits at a hook point inside the decoder (`llm_hidden_<k>`, `llm_final`).

        They get the hidden states [B, T, d] of all positions, padding included. One pass over the samples an
        edit, without shared beginnings, since every position is changed. `span` as in `losses`, of one pass.

        Raises:
            EngineError: an unknown hook point, or a sample that does not fit into memory alone.
        """
        found = np.full((len(edits), len(self.source)), np.nan)
        done = 0
        for c, fn in enumerate(edits):
            with nullcontext() if fn is None else edited(self.loaded, point, fn):
                for part, values in self._batches(
                    [(number, 0) for number in self.order],
                    lambda part: self._losses(part, [None], share=False),
                    span=span,
                ):
                    found[c, [number for number, _ in part]] = values
                    done += len(part)
                    self.progress(done, len(edits) * len(self.source))
        return found

    @torch.no_grad()
    def compare(self, edits: Sequence[Edit]) -> tuple[Float, Float]:
        """Losses without and with each edit, and the divergence of the predictions.

        Returns:
            (cross-entropy fp64 [1 + edits, n], first row without edit; mean over the scored positions of
            KL(unedited, edited), nats a token, fp64 [edits, n]).
        """
        count = len(edits) + 1
        losses = np.full((count, len(self.source)), np.nan)
        kl = np.full((len(edits), len(self.source)), np.nan)
        size = max(1, self.batch_size // count)
        done = 0
        for part, (nll, divergence) in self._batches(
            self.order, lambda part: self._compare(part, [None, *edits]), size=size
        ):
            losses[:, list(part)], kl[:, list(part)] = nll, divergence
            done += len(part)
            self.progress(done, len(self.source))
        return losses, kl

    def gradients(
        self, measure: Callable[[GradientBatch], Made], *, span: tuple[int, int] | None = None
    ) -> Iterator[tuple[tuple[int, ...], Made]]:
        """Yields `(members, measure(batch))`, one forward and one backward a batch.

        Samples of a batch are independent, so the gradient of the sum of their log q holds each one's own.
        `measure` runs where memory errors are caught: it may be called again on a smaller batch. Samples that
        do not fit alone, or whose gradient is not finite, are in `failures`. `span` as in `losses`.
        """
        done = 0
        with frozen(self.loaded.model):
            for part, made in self._batches(
                self.order, lambda part: self._measure(part, measure), fail=True, span=span
            ):
                done += len(part)
                self.progress(done, len(self.source))
                if made is not None:
                    yield made

    def _losses(self, units: Sequence[Unit], edits: Sequence[Edit | None], share: bool = True) -> list[float]:
        items = [self.source.items[number] for number, _ in units]
        packed = self.decoder.pack(items, torch.cat(self._edited(units, edits)), share=share and self.share)
        log_q = token_log_probs(self.decoder.logits(packed), packed.labels)
        values: list[float] = (-mean_by_item(log_q, packed.counts)).tolist()
        return values

    def _compare(self, members: Sequence[int], edits: Sequence[Edit | None]) -> tuple[Float, Float]:
        units = [(number, c) for c in range(len(edits)) for number in members]
        items = [self.source.items[number] for number, _ in units]
        packed = self.decoder.pack(items, torch.cat(self._edited(units, edits)), share=self.share)
        logits = self.decoder.logits(packed)
        nll = -mean_by_item(token_log_probs(logits, packed.labels), packed.counts)
        each = len(logits) // len(edits)
        counts = packed.counts[: len(members)]
        kl = [
            mean_by_item(divergence(logits[:each], logits[c * each : (c + 1) * each]), counts)
            for c in range(1, len(edits))
        ]
        shape = (len(edits), len(members))
        return nll.cpu().numpy().reshape(shape), torch.stack(kl).cpu().numpy()

    def _edited(self, units: Sequence[Unit], edits: Sequence[Edit | None]) -> list[torch.Tensor]:
        """The rows of every unit after its edit; each sample is read once, each edit called once."""
        rows = {number: self.rows(number) for number in dict.fromkeys(number for number, _ in units)}
        found: list[torch.Tensor] = [rows[number] for number, _ in units]
        for condition in dict.fromkeys(c for _, c in units):
            fn = edits[condition]
            if fn is None:
                continue
            at = [i for i, (_, c) in enumerate(units) if c == condition]
            counts = torch.tensor([len(found[i]) for i in at])
            owner = torch.repeat_interleave(torch.tensor([units[i][0] for i in at]), counts)
            z = torch.cat([found[i] for i in at])
            new = fn(z, owner.to(z.device))
            if new.shape != z.shape:
                raise EngineError(
                    f"an edit returned shape {list(new.shape)} for {list(z.shape)}; keep the shape"
                )
            for i, part in zip(at, torch.split(new.to(z.dtype), counts.tolist()), strict=True):
                found[i] = part
        return found

    def _measure(
        self, members: Sequence[int], measure: Callable[[GradientBatch], Made]
    ) -> tuple[tuple[int, ...], Made] | None:
        batch = self._gradient(tuple(members))
        if batch is None:
            return None
        return batch.members, measure(batch)

    def _gradient(self, members: tuple[int, ...]) -> GradientBatch | None:
        scales = _FP16_SCALES if self.loaded.dtype == torch.float16 else (1.0,)
        for scale in scales:
            batch = self._backward(members, scale)
            bad = ~torch.isfinite(batch.g).all(dim=-1)
            if not bool(bad.any()):
                return batch
        if len(members) > 1:  # find out which, and keep the others
            kept = [number for number in members if self._gradient((number,)) is not None]
            return self._gradient(tuple(kept)) if kept else None
        self.failures.append((self.source.items[members[0]].id, "its gradient is not finite"))
        return None

    @torch.enable_grad()
    def _backward(self, members: tuple[int, ...], scale: float) -> GradientBatch:
        items = [self.source.items[number] for number in members]
        parts = [self.rows(number) for number in members]
        z = torch.cat(parts).requires_grad_(True)
        packed = self.decoder.pack(items, z)
        log_q = mean_by_item(token_log_probs(self.decoder.logits(packed), packed.labels), packed.counts)
        (g,) = torch.autograd.grad(log_q.sum() * scale, z)
        ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        # nothing waits for the device here: the graph is taken down while it still computes
        return GradientBatch(members, g, ends.to(g.device, non_blocking=True), log_q.detach(), scale)

    def _batches(
        self,
        units: Sequence[Item],
        work: Callable[[Sequence[Item]], Made],
        *,
        size: int | None = None,
        fail: bool = False,
        span: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Sequence[Item], Made]]:
        backoff = Backoff(self._name, self.note_retry, self._failed if fail else None)
        step = size or self.batch_size
        if span is not None:
            units = units[span[0] * step : span[1] * step]
        batches = [units[start : start + step] for start in range(0, len(units), step)]
        with (
            evaluating(self.loaded.model),
            fused_layers(self.loaded.model) if self.fused else nullcontext(),
            closing(self.ahead(batches)) as coming,
        ):
            for batch in coming:
                yield from backoff.run(batch, work)

    def _name(self, unit: Any) -> str:
        return self.source.items[_number(unit)].id

    def note_retry(self, ids: list[str], size: int) -> None:
        """Records a batch that did not fit into memory and runs again, `size` at a time."""
        log.warning("out of memory: replaying %s to %s again, %d at a time", ids[0], ids[-1], size)
        self.retried.append((tuple(dict.fromkeys(ids)), size))

    def _failed(self, unit: Any, error: EngineError) -> None:
        self.failures.append((self._name(unit), str(error)))


def _number(unit: Any) -> int:
    """The sample of a unit: a number, or a number and a condition."""
    found: int = unit[0] if isinstance(unit, tuple) else unit
    return found


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p, q) of each row of two logit matrices [n, V], nats, fp32 (fp64 for fp64 logits) [n]."""
    parts = []
    for start in range(0, len(p), 512):
        block = (p[start : start + 512], q[start : start + 512])
        log_p, log_q = (
            torch.log_softmax(x if x.dtype == torch.float64 else x.float(), dim=-1) for x in block
        )
        parts.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.cat(parts)
