"""Worker processes on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from distributed.deploy.subprocess import SubprocessWorker

MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""For glibc's malloc. Dask's nanny sets the first to 64 KiB, which gives every freed buffer back to the system: the
covariance's passes then took 1.8 to 2.3 times the CPU time, for page faults. 32 MiB is the most that the second takes.
"""

SETTINGS = {
    "distributed.admin.tick.interval": "1s",
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
}
"""For Dask. It looks every 20 ms whether its event loop still answers, which took 2% of a core a worker, and takes
samples of what runs: tasks here are long, and say themselves how far they are. It gives a worker more than it works on:
at the end one had two shards and another none.
"""


def environment() -> dict[str, str]:
    """`MEMORY` and `SETTINGS` as variables for a scheduler or a worker that is started by command."""
    names = {
        "DASK_" + name.upper().replace("-", "_").replace(".", "__"): str(x) for name, x in SETTINGS.items()
    }
    return {**MEMORY, **names}


class QuietWorker(SubprocessWorker):
    """A worker and its nanny, started by command; what goes wrong in a task reaches the client, not a log."""

    async def _start(self) -> None:
        options = {"cls": self.worker_class, "opts": {"name": self.name, **self.worker_kwargs}}
        command = [sys.executable, "-m", "dask", "spec", self.scheduler, "--spec", json.dumps(options)]
        quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"}
        # A Ctrl-C is for this process, which then ends its workers.
        self.process = await asyncio.create_subprocess_exec(
            *command, env={**environment(), **os.environ, **quiet}, start_new_session=True
        )


if __name__ == "__main__":
    for name, value in environment().items():
        print(f"export {name}={value}")
