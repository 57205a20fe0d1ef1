"""Which of the processes this is, and their process group."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modegap.engine.errors import EngineError

if TYPE_CHECKING:
    import torch

# A rank may tokenise a data set or compute a last shard while the others wait.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: number of this one, 0 to world - 1.
        world: how many there are.
        local: its number on this host, which is that of its GPU.
    """

    rank: int
    world: int
    local: int

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here.

        Raises:
            EngineError: another process ended before.
        """
        import torch.distributed as dist

        with speaking():
            dist.barrier()

    def device(self, wanted: str | None) -> str | None:
        """`wanted`, with this process's own GPU where it says `cuda`."""
        return f"cuda:{self.local}" if wanted == "cuda" else wanted

    @property
    def carrier(self) -> torch.device:
        """Where tensors lie that go to other processes: the GPU under NCCL, else the host."""
        import torch
        import torch.distributed as dist

        nccl = dist.is_nccl_available() and torch.cuda.is_available()
        return torch.device("cuda", self.local) if nccl else torch.device("cpu")


@contextmanager
def speaking() -> Iterator[None]:
    """Turns what gloo and NCCL raise when another process has ended into one line: that one has said why."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise  # of this process's own GPU
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"another process of this run ended or cannot be reached, see what it said ({first})"
        ) from error


def rank_of_env() -> int:
    """Rank of this process under torchrun; 0 elsewhere. Imports nothing."""
    return int(os.environ["RANK"]) if _by_torchrun() else 0


@contextmanager
def launched() -> Iterator[Ranks | None]:
    """The processes that torchrun started, with their group, which stays to the end; None for a single one."""
    if not _by_torchrun():
        yield None
        return
    import torch
    import torch.distributed as dist

    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.device("cuda", ranks.local % torch.cuda.device_count())
        torch.cuda.set_device(gpu)
    if not dist.is_initialized():
        # The functions there take the group that exists when they are imported as a default. Imported later, by
        # transformers, they keep it past its end: its threads then outlive the interpreter, and one that lets go of a
        # tensor while the interpreter ends aborts the process (3 of 54 runs of the test on a busy machine).
        import torch.distributed.nn.functional

        nccl = gpu is not None and dist.is_nccl_available()
        # NCCL says at the first send that it comes in turn with everything else, as it is meant to.
        os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
        # With the device known NCCL connects all processes now, and not every pair when it first meets.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=_PATIENCE, device_id=gpu if nccl else None
        )
        # A group that is made again meets the keys of the first one in torchrun's store, and waits for ever.
        atexit.register(_leave)
    yield ranks


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _by_torchrun() -> bool:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and int(os.environ["WORLD_SIZE"]) > 1
