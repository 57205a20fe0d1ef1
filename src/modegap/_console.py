"""What a person sees: progress bars with rate and ETA on stderr, results as tables on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]
"""Called as `advance(done, total, nbytes=0, label="")`: totals so far, not differences."""


class Console:
    """Prints results on stdout and progress on stderr; silent bars with `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Make one for a command run."""
        self.quiet = quiet
        self._out = RichConsole(highlight=False)
        self._err = RichConsole(stderr=True, highlight=False)
        # A bar in a log file would only be noise.
        self._hidden = quiet or not self._err.is_terminal

    def say(self, message: str) -> None:
        """A line of status for people; not part of the result."""
        if not self.quiet:
            self._err.print(message, markup=False)

    def show(self, result: Any) -> None:
        """Print a result: its tables, or its one table."""
        tables = result.tables() if hasattr(result, "tables") else [result.table()]
        for table in tables:
            self._out.print(table.to_rich())

    @contextmanager
    def progress(self, label: str, unit: str = "rows") -> Iterator[Advance]:
        """A bar with rate (units/s, and GB/s where bytes are reported) and ETA; yields its `Advance`."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        begin = time.perf_counter()
        with Progress(*columns, console=self._err, disable=self._hidden, transient=True) as bar:
            task = bar.add_task(label, total=None, rate="")

            def advance(done: int, total: int, nbytes: int = 0, label: str = label) -> None:
                seconds = max(time.perf_counter() - begin, 1e-9)
                moved = done if unit == "B" else nbytes
                rate = "" if unit == "B" else f"{done / seconds:,.0f} {unit}/s"
                if moved:
                    rate += f"{', ' if rate else ''}{moved / seconds / 1e9:.2f} GB/s"
                bar.update(task, completed=done, total=total, rate=rate, description=label)

            yield advance
