"""Worker processes on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from distributed.deploy.subprocess import SubprocessWorker


class QuietWorker(SubprocessWorker):
    """A worker and its nanny, started by command; what goes wrong in a task reaches the client, not a log."""

    async def _start(self) -> None:
        options = {"cls": self.worker_class, "opts": {"name": self.name, **self.worker_kwargs}}
        command = [sys.executable, "-m", "dask", "spec", self.scheduler, "--spec", json.dumps(options)]
        quiet = {
            "DASK_LOGGING__DISTRIBUTED": "critical",
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
        }
        # A Ctrl-C is for this process, which then ends its workers.
        self.process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **quiet}, start_new_session=True
        )
