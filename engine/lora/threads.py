"""How many threads a narrow decoder gets on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modegap.engine.models.loaded import LoadedModel

# Products of so few channels are over before a second thread has woken. Measured on two busy cores, width 128, steps
# of 8 samples: 10 s an epoch of 1,000 samples on one thread, 69 s on two.
_NARROW = 256


@contextmanager
def threads_for(loaded: LoadedModel) -> Iterator[None]:
    """One thread for torch on the host while the block runs where the decoder is at most 256 wide."""
    before = torch.get_num_threads()
    narrow = loaded.device.type == "cpu" and (loaded.hidden_size or _NARROW + 1) <= _NARROW
    if narrow:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if narrow:
            torch.set_num_threads(before)
