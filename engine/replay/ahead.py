"""Rows of the next batch, read while the device computes this one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Rows = dict[int, torch.Tensor]


def read_ahead(
    batches: Sequence[Sequence[int]], read: Callable[[int], torch.Tensor], *, pin: bool
) -> Generator[Rows, None, None]:
    """Yields what `read` gives for the samples of each batch, read by a thread while the batch before is in use.

    A batch's samples that the one before had too are left out. Where `read` fails, its sample and those after it
    are left out: who asks for them again meets the error where it can be dealt with. Rows wait on the host, so
    that they take none of the device's memory from the batch that is computed there.

    Args:
        batches: numbers of the samples of each batch.
        read: the rows of one sample on the host; called in the thread.
        pin: copy them to page-locked memory, from which a GPU takes them at four times the speed and by itself.
    """

    def fetch(numbers: Sequence[int]) -> Rows:
        found: Rows = {}
        try:
            for number in numbers:
                rows = read(number)
                found[number] = rows.pin_memory() if pin else rows
        except Exception:  # the caller reads it again
            return found
        return found

    fresh, last = [], set[int]()
    for numbers in batches:
        fresh.append([number for number in dict.fromkeys(numbers) if number not in last])
        last = set(numbers)
    if not fresh:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="modegap-replay") as pool:
        coming = pool.submit(fetch, fresh[0])
        for numbers in fresh[1:]:
            found = coming.result()
            coming = pool.submit(fetch, numbers)
            yield found
        yield coming.result()
