"""Who writes which samples: one live writer a range, by records created exclusively in `_owner`.

A record names host, process and the process's start time. The record of a process that is gone from this host
(killed, say) is stale and is taken over; one from another host is trusted, since it cannot be checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from .durable import create_file
from .errors import StoreBusyError, disk_error
from .remote import Place, RemotePath, small_content
from .zarrjson import METADATA

_MAX_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Owner:
    """A writer's claim on samples `first` to `last` (exclusive)."""

    first: int
    last: int
    host: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """False only if the process is known to be gone: it ran on this host, its pid is free or reused."""
        return self.host != socket.gethostname() or _started(self.pid) == self.started


def _started(pid: int) -> str | None:
    """Return the boot and start time of a process (its pid alone may be reused), or None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return _running(pid)
    # Fields are counted after the command name, which may itself hold spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{boot}/{fields[18]}"


def _running(pid: int) -> str | None:
    """Return "running" for a process of a system without /proc, None if there is no such process."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "running"
    return "running"


@contextlib.contextmanager
def _exclusively(root: Path) -> Iterator[None]:
    """Hold the store's lock, so that two processes cannot both take over a stale record."""
    descriptor = os.open(root / METADATA, os.O_RDWR)
    try:
        # Some network file systems have no locks; there the exclusive creation of the record must do.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def claim(root: Place, first: int, last: int) -> Place:
    """Claim samples `first` to `last` of the store at `root` and return the file of the record.

    Raises:
        StoreBusyError: a live writer owns some of them; the message names it.
        OSError: the store cannot be written.
    """
    if isinstance(root, RemotePath):
        return _claim_remote(root, first, last)
    folder = root / "_owner"
    mine = Owner(first, last, socket.gethostname(), os.getpid(), _started(os.getpid()) or "")
    with _exclusively(root):
        folder.mkdir(exist_ok=True)
        for file in sorted(folder.glob("*.json")):
            theirs = _read(file)
            if not theirs.alive:
                file.unlink()
            elif theirs.first < last and first < theirs.last:
                raise _busy(root, theirs, file)
        record = folder / f"{first}-{last}.json"
        try:
            create_file(record, json.dumps(asdict(mine)).encode())
        except FileExistsError:
            raise StoreBusyError(
                f"samples {first} to {last - 1} of {root} have just been claimed: wait"
            ) from None
    return record


def _read(file: Place) -> Owner:
    try:
        owner = Owner(**json.loads(small_content(file, _MAX_BYTES)))
        if [type(value) for value in astuple(owner)] != [int, int, str, int, str]:
            raise ValueError("no owner")
    except (ValueError, TypeError, RecursionError):
        raise StoreBusyError(f"{file} is damaged: delete it once no writer is running") from None
    return owner


def _busy(root: Place, theirs: Owner, file: Place) -> StoreBusyError:
    return StoreBusyError(
        f"samples {theirs.first} to {theirs.last - 1} of {root} are being written by process "
        f"{theirs.pid} on {theirs.host}: wait for it, or if it is gone delete {file}"
    )


def _claim_remote(root: RemotePath, first: int, last: int) -> RemotePath:
    """Claim by an object of its own, then look for others: of two at the same time at least one sees both.

    That needs listings that show what has been written, as all large object stores have had since 2020.
    """
    folder = root / "_owner"
    mine = Owner(first, last, socket.gethostname(), os.getpid(), _started(os.getpid()) or "")
    record = folder / f"{first}-{last}-{uuid.uuid4().hex}.json"
    record.create(json.dumps(asdict(mine)).encode())
    try:
        for name in folder.names():
            file = folder / name
            if not name.endswith(".json") or name == record.name:
                continue
            try:
                theirs = _read(file)
            except FileNotFoundError:
                continue
            if not theirs.alive:
                file.unlink(missing_ok=True)
            elif theirs.first < last and first < theirs.last:
                raise _busy(root, theirs, file)
    except BaseException:
        with contextlib.suppress(OSError):
            record.unlink()
        raise
    return record


@contextlib.contextmanager
def claimed(root: Place, first: int, last: int) -> Iterator[None]:
    """Hold a claim on samples `first` to `last`.

    Raises:
        StoreBusyError: a live writer owns some of them.
        StoreError: the store cannot be written.
    """
    try:
        record = claim(root, first, last)
    except OSError as error:
        raise disk_error(error, root, 4096) from error
    try:
        yield
    finally:
        release(root, record, os.getpid())


def release(root: Place, record: Place, pid: int) -> None:
    """Give a claim back; a forked child, whose `pid` differs, leaves its parent's alone."""
    if os.getpid() != pid:
        return
    if isinstance(root, RemotePath) or isinstance(record, RemotePath):
        with contextlib.suppress(OSError):
            record.unlink(missing_ok=True)
        return
    with contextlib.suppress(OSError), _exclusively(root):
        record.unlink(missing_ok=True)
        record.parent.rmdir()
