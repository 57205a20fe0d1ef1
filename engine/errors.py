"""The engine's user-facing error."""

from __future__ import annotations


class EngineError(RuntimeError):
    """Something the user can mend; the message is one line and names the remedy."""


class ValuesError(EngineError):
    """What the rows hold is the matter, on whichever machine they are read: the message names point and row."""
