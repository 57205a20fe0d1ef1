"""Does a run fit? Needs against what the machine has, and what would fit instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from modegap.engine.errors import EngineError

from .batching import batch_bytes
from .capacity import disk_free, free_memory
from .memory import Decoder, decoder_of, moments_bytes

if TYPE_CHECKING:
    from modegap.engine.capture.job import Job
    from modegap.stores import StorePlan

# of a GPU's memory: what the context, the kernels' workspaces and fragmentation leave
USABLE = 0.92
# files of a store beside its chunks, and a file system that fills up is slow long before it is full
_DISK_MARGIN = 1.01


@dataclass(frozen=True, slots=True)
class Limit:
    """One need that was checked.

    Attributes:
        what: disk, host memory, or a GPU's memory.
        needed: bytes.
        available: bytes; None where the machine has no such thing (no GPU to ask).
        remedies: what would fit instead, best first; empty where it fits.
    """

    what: str
    needed: int
    available: int | None
    remedies: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as is known."""
        return self.available is None or self.needed <= self.available

    def refusal(self) -> str:
        """One line: what is needed, what there is, what would fit."""
        assert self.available is not None
        return f"{self.what}: {gigabytes(self.needed)} needed, {gigabytes(self.available)} free; " + (
            "; or ".join(self.remedies) if self.remedies else "use a larger machine"
        )


def refuse(limits: Sequence[Limit]) -> None:
    """Raises EngineError if a limit does not fit: all that do not, with what would."""
    short = [limit for limit in limits if not limit.fits]
    if short:
        raise EngineError("this run cannot fit: " + ". ".join(limit.refusal() for limit in short))


def check_capture(job: Job, plan: StorePlan) -> None:
    """Raises EngineError for a store that the disk or a batch that the device cannot hold."""
    refuse([disk_limit(job.path, plan, job.count), *memory_limits(job)])


def check_streaming(job: Job, work: Path, reserve: int) -> None:
    """Raises EngineError for hidden states that the disk of `work`, or layers that the device, cannot hold.

    Args:
        job: prepared.
        work: folder of the hidden states.
        reserve: bytes of the two layers on the device.
    """
    decoder = decoder_of(job.loaded)
    # the state before the layer at work, and the one after it
    states = 2 * int(job.measured.llm.sum()) * decoder.width * decoder.itemsize
    free = disk_free(work)
    remedies = (
        (f"limit={int(job.count * free / states)}", "work=<a folder on a larger disk>")
        if states > free
        else ()
    )
    limits = [Limit(f"disk of {work}", states, free, remedies)]
    if job.loaded.device.type == "cuda":
        free = free_memory(job.loaded.device)
        needed = reserve + job_bytes(job)
        short = _batch_remedies(job, decoder, free - reserve) if needed > free else ()
        limits.append(Limit(f"memory of {job.loaded.device}", needed, free, short))
    refuse(limits)


def disk_limit(path: Path, plan: StorePlan, samples: int) -> Limit:
    """The store's bytes that are not there yet, against the disk's free ones."""
    needed = int(plan.nbytes() * _DISK_MARGIN)
    rest = max(0, needed - _written(path))
    free = disk_free(path)
    return Limit(f"disk of {path}", rest, free, disk_remedies(plan, free, samples) if rest > free else ())


def disk_remedies(plan: StorePlan, free: int, samples: int) -> tuple[str, ...]:
    """Other options whose store fits: pooled rows, one point, fewer samples; statistics always do."""
    pooled = sum(2 * point.width * samples for point in plan.points.values())
    said = []
    if any(point.rows != "pooled" for point in plan.points.values()):
        if pooled <= free:
            said.append(f"rows=pooled ({gigabytes(pooled)})")
        if len(plan.points) > 1 and (most := int(len(plan.points) * free / plan.nbytes())):
            said.append(f"about {most} of the {len(plan.points)} points")
    if fewer := int(samples * free / (plan.nbytes() * _DISK_MARGIN)):
        said.append(f"limit={fewer}")
    said.append("rows=stats-only")
    return tuple(said)


def memory_limits(job: Job) -> list[Limit]:
    """Each GPU's free memory against one batch of the job, its weights being there already."""
    devices = {weight.device for weight in job.loaded.model.parameters() if weight.device.type == "cuda"}
    if not devices:
        return []
    needed = job_bytes(job)
    decoder = decoder_of(job.loaded)
    limits = []
    for device in sorted(devices, key=str):
        free = free_memory(device)
        limits.append(
            Limit(
                f"memory of {device}",
                needed,
                free,
                _batch_remedies(job, decoder, free) if needed > free else (),
            )
        )
    return limits


def job_bytes(job: Job) -> int:
    """Device memory of the job's largest batch, and of its statistics."""
    decoder = decoder_of(job.loaded)
    longest, tokens = _largest_batch(job)
    stats = 0
    if job.config.rows == "stats-only":
        stats = moments_bytes([decoder.width] * len(job.points), classes=job.config.by is not None)
    return batch_bytes(decoder, job.points, tokens, longest) + stats


def _largest_batch(job: Job) -> tuple[int, int]:
    lengths = job.measured.llm
    worst = max(
        (batch for window in job.windows for batch in window.batches),
        key=lambda batch: len(batch) * int(lengths[list(batch)].max()),
    )
    longest = max(1, int(lengths[list(worst)].max()))
    return longest, longest * len(worst)


def _batch_remedies(job: Job, decoder: Decoder, free: int) -> tuple[str, ...]:
    longest, tokens = _largest_batch(job)
    size = ceil(tokens / longest)
    while size > 1:
        size //= 2
        if batch_bytes(decoder, job.points, size * longest, longest) <= free:
            return (f"batch_size={size}",)
    return ("device_map=auto over more GPUs", "stream_layers", "dtype=bfloat16")


def gigabytes(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _written(path: Path) -> int:
    if not path.is_dir():
        return 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and "/c/" in file.as_posix())
