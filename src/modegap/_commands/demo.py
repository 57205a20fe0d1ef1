"""`modegap demo`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modegap.analyses.demo.config import DemoConfig

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.demo import DemoResult

CONFIGS = (DemoConfig,)


def run(config: DemoConfig, console: Console) -> DemoResult:
    """The main job on the built-in lab."""
    begin = time.perf_counter()
    from modegap.analyses.demo import demo

    with console.progress("demo", unit="steps") as advance:
        result = demo(config, step=lambda what, done, total: advance(done, total, label=what))
    console.say(f"done in {time.perf_counter() - begin:.0f} s")
    return result
