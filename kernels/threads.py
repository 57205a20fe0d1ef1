"""Worker threads of the host paths: they stay between calls, and each is single-threaded inside.

torch's own threads meet at a barrier after every operation and spin there: on a machine with other load,
tiles of 30 MFLOP took 3 times the CPU time and twice the wall time that way. Threads that are started for a
call cost more than they save where an operation takes less than a millisecond: 0.35 ms for two on a quiet
machine, and they begin on the processor of the thread that started them. Tasks should be made of operations
of 0.1 ms and more: with shorter ones the thread that waits for Python's lock is not awake when it is free.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch

from .workspace import Workspace

T = TypeVar("T")

_DEVICE_STEP = 2048
_lock = threading.Lock()
_held: list[tuple[int, ThreadPoolExecutor]] = []  # at most one pool, with its number of threads
_blas_lock = threading.Lock()
_blas_users: list[Any] = []  # the limit in force, once for each context of `blas_alone`
_own = threading.local()


@cache
def thread_limits() -> Any:
    """threadpoolctl's controller of the libraries loaded at the first call."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@cache
def _openmp() -> tuple[Any, ...]:
    return tuple(c for c in thread_limits().lib_controllers if c.user_api == "openmp")


def _alone() -> None:
    """Torch operations of the calling thread run in that thread alone from here on."""
    torch.get_num_threads()  # its first call in a thread resets the limit that is set next
    for library in _openmp():
        library.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch operations of the calling thread on the host run in that thread alone.

    For small operations between the large ones: see the top of this file for what torch's own threads cost.
    """
    torch.get_num_threads()
    before = [(library, library.get_num_threads()) for library in _openmp()]
    _alone()
    try:
        yield
    finally:
        for library, count in before:
            library.set_num_threads(count)


@contextmanager
def blas_alone() -> Iterator[None]:
    """Inside, numpy's BLAS runs in the thread that calls it: for products in the workers of `parallel`.

    The limit is one for the process, so it is lifted when the last thread leaves such a context.
    """
    with _blas_lock:
        _blas_users.append(
            _blas_users[0] if _blas_users else thread_limits().limit(limits=1, user_api="blas")
        )
    try:
        yield
    finally:
        with _blas_lock:
            limit = _blas_users.pop()
            if not _blas_users:
                limit.restore_original_limits()


def zeros(*shape: int) -> torch.Tensor:
    """fp64 zeros on the host. torch fills more than 32,768 values in its own threads, which then spin."""
    return torch.from_numpy(np.zeros(shape))


def scratch() -> Workspace:
    """Scratch memory of the calling thread, kept between calls: for buffers of a few MiB."""
    if not hasattr(_own, "workspace"):
        _own.workspace = Workspace()
    workspace: Workspace = _own.workspace
    return workspace


def _pool(count: int) -> ThreadPoolExecutor:
    with _lock:
        if not _held or _held[0][0] < count:
            # Who still uses a smaller pool holds it; its threads end when nobody does.
            pool = ThreadPoolExecutor(count, thread_name_prefix="modegap-kernel", initializer=_alone)
            _held[:] = [(count, pool)]
        return _held[0][1]


def _forget() -> None:
    """In a child process that was forked: the threads are not there, and the lock may be held for ever."""
    global _lock, _blas_lock
    _lock, _blas_lock = threading.Lock(), threading.Lock()
    _held.clear()
    _blas_users.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _torch_mode() -> Callable[[], AbstractContextManager[Any]]:
    """Makes a context with the calling thread's grad and inference mode, which are a thread's own."""
    if torch.is_inference_mode_enabled():
        return lambda: torch.inference_mode(True)
    enabled = torch.is_grad_enabled()
    return lambda: torch.set_grad_enabled(enabled)


def parallel(work: Callable[[T], None], tasks: Sequence[T]) -> None:
    """Run `work` on every task, in as many threads as torch may use, each single-threaded inside.

    The calling thread is one of them, so that nothing waits where the others are busy; tasks start in order
    and are meant to fit a cache, so that one task alone is no work for two threads. After an exception no
    further task starts; it is raised here once all threads are done.
    """
    count = min(torch.get_num_threads(), len(tasks))
    if count <= 1:
        with one_thread():
            for task in tasks:
                work(task)
        return
    waiting = deque(tasks)
    mode = _torch_mode()

    def loop() -> None:
        with mode():
            while True:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                try:
                    work(task)
                except BaseException:
                    waiting.clear()
                    raise

    pool = _pool(count - 1)
    helpers: list[Future[None]] = [pool.submit(loop) for _ in range(count - 1)]
    try:
        with one_thread():
            loop()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
        wait(started)
    for helper in started:
        helper.result()


def by_rows(work: Callable[[int, int], None], matrix: torch.Tensor, step: int) -> None:
    """work(lo, hi) for every `step` rows of a matrix: in threads on the host, one after the other on a GPU.

    There blocks have at least `_DEVICE_STEP` rows, since each launches several kernels.
    """
    rows = len(matrix)
    if matrix.device.type != "cpu":
        step = max(step, _DEVICE_STEP)
    starts = range(0, rows, step)

    def block(lo: int) -> None:
        work(lo, min(lo + step, rows))

    if matrix.device.type == "cpu":
        parallel(block, starts)
    else:
        for lo in starts:
            block(lo)
