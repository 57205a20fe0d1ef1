"""A sample that cannot be used: which one, which file, why."""

from __future__ import annotations

from modegap.engine.errors import EngineError


class MediaError(EngineError):
    """A sample whose media (or text) cannot be used.

    Attributes:
        sample: its id.
        file: its file, or where else its bytes lie; empty where there is none.
        reason: why, in a few words.
    """

    def __init__(self, sample: str, file: str, reason: str) -> None:
        """The three are the exception's arguments, so that it survives the way from a worker process."""
        super().__init__(sample, file, reason)
        self.sample, self.file, self.reason = sample, file, reason

    def __str__(self) -> str:
        """One line that names sample, file and remedy."""
        what = f"cannot decode {self.file} of sample" if self.file else "cannot use sample"
        return (
            f"{what} {self.sample!r} ({self.reason}); replace the file or remove its row, or go on without it "
            "(skip_bad)"
        )
