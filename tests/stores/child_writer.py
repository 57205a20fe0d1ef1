"""Run by test_kill: starts writers on demand, each a fork of this process, which has everything imported.

For each line `path profile samples first last` on stdin it forks a writer of these samples, which creates or
resumes the store, and prints the writer's process number. `wait` prints the exit codes of the ones that ended.
"""

from __future__ import annotations

import os
import sys
import traceback

os.fsync = lambda descriptor: None  # a killed process loses nothing that the kernel has
from store_material import fill, small_plan, small_sizes  # noqa: E402

from modegap.stores import ActivationStore  # noqa: E402

small_sizes()


def write(path: str, profile: str, n: int, first: int, last: int) -> None:
    plan = small_plan(n, profile=profile)  # type: ignore[arg-type]
    store = ActivationStore.create(path, plan, exist_ok=True)
    with store.writer(first, last) as writer:
        fill(writer, plan)


for line in sys.stdin:
    if line.strip() == "wait":
        ended = []
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                break
            ended.append(f"{pid}:{os.waitstatus_to_exitcode(status)}")
        print(" ".join(ended), flush=True)
        continue
    path, profile, n, first, last = line.rsplit(maxsplit=4)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write(path, profile, int(n), int(first), int(last))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
