"""Media decoded ahead in worker processes: in order, in bounded memory."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context, parent_process

from modegap.engine.errors import EngineError
from modegap.engine.machine import cores

from .audio import resample
from .base import Dataset, Sample
from .errors import MediaError
from .transfer import Parcel, Slots

Outcome = Sample | MediaError

# Samples decoded ahead by each worker: enough that none waits for the others, few enough for memory.
AHEAD = 4
_MOST_WORKERS = 8
# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def default_workers() -> int:
    """Decoding processes for this machine: all usable cores but one, at most eight."""
    return min(cores() - 1, _MOST_WORKERS)


def decoded(
    data: Dataset,
    indices: Sequence[int] | None = None,
    *,
    workers: int = 0,
    ahead: int | None = None,
    rate: int | None = None,
) -> Generator[tuple[int, Sample], None, None]:
    """`(index, sample)` in the order of `indices`, media decoded; stops at the first bad sample.

    Args:
        data: any data set; it is pickled for the workers.
        indices: which samples, in any order, also repeated; all unless given.
        workers: decoding processes; with 0, and for data sets that decode nothing, this process decodes.
            A script that asks for workers keeps its code under `if __name__ == "__main__":`, as everywhere
            in multiprocessing.
        ahead: samples that may wait decoded; four a worker unless given. No more are ever held.
        rate: resample audio to it (Hz), in the worker.

    Raises:
        MediaError: a sample that cannot be decoded; names it.
        EngineError: workers that cannot be started or were killed.
        ValueError: a negative number of workers, or `ahead` below one.
    """
    with closing(attempted(data, indices, workers=workers, ahead=ahead, rate=rate)) as outcomes:
        for index, outcome in outcomes:
            if isinstance(outcome, MediaError):
                raise outcome
            yield index, outcome


def attempted(
    data: Dataset,
    indices: Sequence[int] | None = None,
    *,
    workers: int = 0,
    ahead: int | None = None,
    rate: int | None = None,
) -> Generator[tuple[int, Outcome], None, None]:
    """`decoded`, but a bad sample comes as the `MediaError` that says why, and the rest follow.

    Raises:
        EngineError: workers that cannot be started or were killed.
        ValueError: a negative number of workers, or `ahead` below one.
    """
    if workers < 0 or (ahead is not None and ahead < 1):
        raise ValueError(f"got workers {workers} and ahead {ahead}; expected at least 0 and 1")
    wanted = range(len(data)) if indices is None else indices
    if workers == 0 or not len(wanted) or data.modality == "text" or getattr(data, "in_memory", False):
        return ((index, _attempt(data, index, rate)) for index in wanted)
    return _in_workers(data, wanted, min(workers, len(wanted)), ahead or AHEAD * workers, rate)


def _attempt(data: Dataset, index: int, rate: int | None) -> Outcome:
    """The sample, or why there is none; a missing library or a broken set-up is raised."""
    try:
        sample = data[index]
        if rate is not None and isinstance(sample.media, tuple):
            wave, own = sample.media
            return Sample(
                sample.id, sample.text, (resample(wave, own, rate), rate), sample.prompt, sample.labels
            )
        return sample
    except MediaError as bad:
        return bad
    except EngineError:
        raise
    except Exception as error:  # a data set of the user's own raises whatever it likes
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        unknown = MediaError(data.ids[index], "", reason.splitlines()[0])
        unknown.__cause__ = error
        return unknown


def _in_workers(
    data: Dataset, indices: Sequence[int], workers: int, ahead: int, rate: int | None
) -> Generator[tuple[int, Outcome], None, None]:
    try:
        packed = pickle.dumps((data, rate))
    except Exception as error:  # pickle raises TypeError, AttributeError, PicklingError, ...
        raise EngineError(
            f"data set {data.name} cannot be sent to workers ({error}); use workers=0"
        ) from error
    # Not fork: this process may hold CUDA, locks and threads, none of which survive it.
    context = get_context("forkserver")
    slots = Slots.made()
    given = (packed, slots.folder)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=given)
    waiting: deque[tuple[int, int, Future[Parcel]]] = deque()
    todo = enumerate(indices)
    try:
        while True:
            while len(waiting) < ahead and (following := next(todo, None)) is not None:
                number, index = following
                slot = number % ahead  # free: its last sample has been taken, or this one would not be due
                waiting.append((index, slot, pool.submit(_work, index, slot)))
            if not waiting:
                return
            index, slot, future = waiting.popleft()
            yield index, slots.take(slot, future.result())
    except BrokenProcessPool as error:
        raise EngineError(
            f"a decoding worker of data set {data.name} ended abruptly (killed, out of memory, or started from a "
            'script without `if __name__ == "__main__":`); use fewer workers, or workers=0'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        slots.remove()


class _Worker:
    """What a worker process works with; one a process."""

    data: Dataset
    rate: int | None
    slots: Slots


def _start(packed: bytes, folder: str) -> None:
    """Runs once in every worker."""
    # Ctrl-C reaches the whole process group; the parent alone decides, and shuts its workers down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=(folder,), daemon=True).start()
    _keep_memory()
    _Worker.slots = Slots(folder)
    _Worker.data, _Worker.rate = pickle.loads(packed)


def _keep_memory() -> None:
    """Lets glibc keep freed memory for the next image; faulting its pages in again took 2.4 of 4.2 ms an image."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _follow_parent(folder: str) -> None:
    """Ends the worker when its parent is gone: a killed one closes no queues, and workers would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _work(index: int, slot: int) -> Parcel:
    return _Worker.slots.put(slot, _attempt(_Worker.data, index, _Worker.rate))
