"""Run by test_kill: writes a store, resuming it, until it is complete or this process is killed."""

from __future__ import annotations

import os
import sys

os.fsync = lambda descriptor: None  # a killed process loses nothing that the kernel has
from store_material import fill, small_plan  # noqa: E402

from modegap.stores import ActivationStore  # noqa: E402

path, n, first, last = sys.argv[1], *map(int, sys.argv[2:5])
plan = small_plan(n)
store = ActivationStore.create(path, plan, exist_ok=True)
with store.writer(first, last) as writer:
    print("writing", flush=True)
    fill(writer, plan)
