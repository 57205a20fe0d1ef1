"""Bad samples found before a run, so that every row range of the plan is that of a sample that will come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from modegap.engine.errors import EngineError

from .base import Dataset
from .decoding import attempted
from .errors import MediaError
from .views import Subset


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be used.

    Attributes:
        index: its place in the data set it was found in.
        id: its id.
        file: its file, or where else its bytes lie; empty for a text.
        reason: why, in a few words.
    """

    index: int
    id: str
    file: str
    reason: str

    def to_json(self) -> dict[str, str | int]:
        """The same as JSON."""
        return {"index": self.index, "id": self.id, "file": self.file, "reason": self.reason}


def bad_samples(
    data: Dataset, *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[BadSample, ...]:
    """The samples whose media cannot be decoded, or of a text data set those without text, in order.

    Everything is decoded once, for only that tells a file cut short from a whole one.

    Args:
        data: any data set.
        workers: decoding processes (see `decoded`).
        progress: called with (samples done, samples in all).
    """
    bad: list[BadSample] = []
    with closing(attempted(data, workers=workers)) as outcomes:
        for done, (index, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, MediaError):
                bad.append(BadSample(index, outcome.sample, outcome.file, outcome.reason))
            elif data.modality == "text" and not outcome.text.strip():
                bad.append(BadSample(index, outcome.id, "", "it has no text"))
            if progress is not None:
                progress(done, len(data))
    return tuple(bad)


def sift(
    data: Dataset, *, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[Dataset, tuple[BadSample, ...]]:
    """The data set without its bad samples, and those; see `bad_samples`.

    Raises:
        EngineError: all samples are bad; names the first.
    """
    bad = bad_samples(data, workers=workers, progress=progress)
    if not bad:
        return data, bad
    if len(bad) == len(data):
        raise EngineError(
            f"all {len(data)} samples of data set {data.name} are bad; the first is {bad[0].id!r}: {bad[0].reason} "
            f"({bad[0].file or 'no file'})"
        )
    out = {one.index for one in bad}
    return Subset(data, [index for index in range(len(data)) if index not in out]), bad
