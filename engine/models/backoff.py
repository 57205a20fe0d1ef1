"""Out of memory: try again with smaller batches, and say so; nothing is dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from modegap.engine.errors import EngineError

Item = TypeVar("Item")
Made = TypeVar("Made")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class AloneTooLargeError(EngineError):
    """One item alone does not fit into memory."""


class Backoff(Generic[Item]):
    """Runs batches; halves the batch size for good whenever one does not fit.

    Args:
        name: an item's name for messages.
        retried: called with the names of the items of every batch that did not fit, and the size tried next.
        failed: called with an item that does not fit alone, which is then left out; unless given, that is an
            error.
    """

    def __init__(
        self,
        name: Callable[[Item], str],
        retried: Callable[[list[str], int], None],
        failed: Callable[[Item, EngineError], None] | None = None,
    ) -> None:
        """Nothing is known to be too large yet."""
        self._failed = failed
        self._name = name
        self._retried = retried
        self._limit: int | None = None

    @property
    def limit(self) -> int | None:
        """The largest batch that is tried now; None while every batch has fitted."""
        return self._limit

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Made]
    ) -> Iterator[tuple[Sequence[Item], Made]]:
        """Yields `(part, work(part))` for the parts of `items` in order, smaller ones after a failure.

        Raises:
            EngineError: one item alone does not fit; names it.
        """
        at = 0
        while at < len(items):
            part = items[at : at + (self._limit or len(items))]
            try:
                made = self._attempt(part, work)
            except AloneTooLargeError as error:
                if self._failed is None:
                    raise
                self._failed(part[0], error)
                at += 1
                continue
            if made is None:
                continue
            at += len(part)
            yield part, made[0]

    def _attempt(self, part: Sequence[Item], work: Callable[[Sequence[Item]], Made]) -> tuple[Made] | None:
        try:
            return (work(part),)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(part) == 1:
                raise AloneTooLargeError(
                    f"sample {self._name(part[0])!r} alone does not fit into memory; shorten it, use a "
                    "smaller dtype "
                    'or spread the model with device_map="auto"'
                ) from error
        # outside the handler: the traceback, which holds the failed batch's tensors, is gone here
        self._limit = len(part) // 2
        self._retried([self._name(item) for item in part], self._limit)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None
