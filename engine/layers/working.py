"""`WorkingStore`: hidden states between layers, in a folder, in the model's own dtype.

    facts.json                    what the run is of; another run is refused
    calls/<batch>.safetensors     the decoder's arguments, attention, modality and token ids of a batch
    states/<k>/<batch>-<part>.safetensors   rows [n, d] that enter layer k, padding left out, cut into parts
    states/<k>.json               written last: dtype and width of each batch, rows and crc32c of each part
    states/spare/                 files of a state that is done with, for the next one to write over

Only the state that the next layer starts from is kept. A file takes one writer at a time, whatever the file system,
so a batch is several files, written and read by as many threads. Files are not synced to the disk: the run goes on
after a killed process, and after a crash of the machine at worst from the beginning, since every file is checked.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from modegap.engine.errors import EngineError
from modegap.engine.machine import cores
from modegap.stores.durable import replaced

from .rawrows import DTYPES, KINDS, Buffers, checksum, read_rows, write_rows

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped
_AHEAD = 2
_FACTS = "facts.json"
_SPARE = "spare"
_PART_BYTES = 32 << 20
_MOST_THREADS = 8


class WorkingStore:
    """The folder; states are written and read in threads.

    Args:
        folder: made if it is not there.
        device: where states are computed.
        part_bytes: most bytes of a file.
    """

    def __init__(self, folder: Path, device: torch.device, part_bytes: int = _PART_BYTES) -> None:
        """Starts no thread yet."""
        self.folder, self._device, self._part_bytes = folder, device, part_bytes
        self._trusted: set[int] = set()  # states that this process wrote

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Makes the folder for a run, or goes on in it.

        Raises:
            EngineError: it holds something else.
        """
        file = self.folder / _FACTS
        wanted = json.loads(json.dumps(facts))
        if file.exists():
            theirs = json.loads(file.read_text(encoding="utf-8"))
            if theirs != wanted:
                differ = sorted(key for key in {*theirs, *wanted} if theirs.get(key) != wanted.get(key))
                raise EngineError(
                    f"{self.folder} holds the hidden states of another run ({', '.join(differ)} differ); delete "
                    "it, or choose another folder (work)"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise EngineError(
                f"{self.folder} is not empty; choose another folder for the hidden states (work)"
            )
        (self.folder / "calls").mkdir(parents=True, exist_ok=True)
        _write_json(file, wanted)

    def note(self, name: str, entry: Any) -> None:
        """Keeps a small fact for a run that goes on."""
        _write_json(self.folder / f"{name}.json", entry)

    def noted(self, name: str) -> Any:
        """What `note` kept; None where nothing was."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def put_call(self, batch: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Keeps the arguments of a batch."""
        from safetensors.torch import save_file

        # copies: two arguments may share their memory, which the format refuses
        host = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(host, self._call(batch), metadata={"facts": json.dumps(facts)})

    def call(self, batch: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The arguments of a batch, on the host.

        Raises:
            EngineError: the file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._call(batch), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return tensors, json.loads(file.metadata()["facts"])
        except (OSError, SafetensorError) as error:
            raise EngineError(
                f"{self._call(batch)} cannot be read ({error}); delete {self.folder}"
            ) from error

    def writer(self, k: int) -> StateWriter:
        """Takes the state that enters layer k; what an earlier try left of it is written over."""
        folder, spare = self._states(k), self.folder / "states" / _SPARE
        if not folder.exists() and spare.exists():
            spare.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return StateWriter(folder, self._device, self._part_bytes)

    def commit(self, k: int, sums: Mapping[str, Mapping[str, Any]]) -> None:
        """Says that the state before layer k is complete."""
        _write_json(self._states(k).with_suffix(".json"), sums)
        self._trusted.add(k)

    def keep_only(self, k: int) -> None:
        """Drops the states before layers below k: nothing will start from them again."""
        spare = self.folder / "states" / _SPARE
        for file in (self.folder / "states").glob("*.json"):
            if int(file.stem) < k:
                file.unlink()
                shutil.rmtree(spare, ignore_errors=True)
                file.with_suffix("").rename(spare)

    def read(self, k: int, batches: Sequence[int]) -> Generator[tuple[int, torch.Tensor], None, None]:
        """The rows [n, d] that enter layer k, batch by batch, on the device; read ahead in a thread.

        Raises:
            EngineError: a file is missing or fails its checksum.
        """
        sums = json.loads(self._states(k).with_suffix(".json").read_text(encoding="utf-8"))
        ready: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD)
        stopped = threading.Event()

        def work() -> None:
            try:
                buffers = Buffers(self._device)
                with ThreadPoolExecutor(threads(), thread_name_prefix="modegap-states") as pool:
                    for batch in batches:
                        rows = self._load(k, batch, sums[str(batch)], buffers, pool)
                        if not _put(ready, (batch, *buffers.upload(rows)), stopped):
                            return
                _put(ready, None, stopped)
            except BaseException as error:
                _put(ready, error, stopped)

        thread = threading.Thread(target=work, name="modegap-states", daemon=True)
        thread.start()
        try:
            while (found := ready.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                batch, rows, event = found
                if event is not None:
                    stream = _cuda.current_stream(self._device)
                    stream.wait_event(event)
                    rows.record_stream(stream)
                yield batch, rows
        finally:
            stopped.set()
            thread.join()

    def remove(self) -> None:
        """Deletes the folder: the run is complete. What says that it is ours goes last."""
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _FACTS:
                entry.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(
        self,
        k: int,
        batch: int,
        expected: Mapping[str, Any],
        buffers: Buffers,
        pool: ThreadPoolExecutor,
    ) -> torch.Tensor:
        counts = [count for count, _ in expected["parts"]]
        rows = buffers.take((sum(counts), expected["width"]), DTYPES[expected["dtype"]])

        def load(part: int, target: torch.Tensor) -> None:
            file = self._states(k) / _name(batch, part)
            try:
                read_rows(file, target)
            except (OSError, ValueError, KeyError) as error:
                raise EngineError(
                    f"{file} cannot be read ({error}); delete {self.folder} and start again"
                ) from error
            if k not in self._trusted and checksum(target) != expected["parts"][part][1]:
                raise EngineError(f"{file} fails its checksum; delete {self.folder} and start again")

        list(pool.map(load, range(len(counts)), torch.split(rows, counts)))
        return rows

    def _call(self, batch: int) -> Path:
        return self.folder / "calls" / f"{batch}.safetensors"

    def _states(self, k: int) -> Path:
        return self.folder / "states" / str(k)


class StateWriter:
    """Copies states to the host and writes them, in threads; use it as a context manager.

    Attributes:
        sums: dtype and width of each batch, rows and crc32c of each of its parts; complete when the `with` block has
            ended.
    """

    def __init__(self, folder: Path, device: torch.device, part_bytes: int) -> None:
        """Starts nothing yet."""
        self.sums: dict[str, dict[str, Any]] = {}
        self._folder, self._device, self._part_bytes = folder, device, part_bytes
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name="modegap-state-writer", daemon=True)
            for _ in range(threads())
        ]

    def __enter__(self) -> StateWriter:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Waits for what was put, unless there was an error.

        Raises:
            EngineError, OSError: a state could not be written.
        """
        self._failure = self._failure or error
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    def put(self, batch: int, rows: torch.Tensor) -> None:
        """Takes the rows [n, d] of a batch; waits while two are before it."""
        self._room.acquire()
        if self._failure is not None:
            raise self._failure
        event = None
        if rows.is_cuda:
            event = _cuda.Event()
            event.record(_cuda.current_stream(rows.device))
        most = max(1, self._part_bytes // (rows.shape[1] * rows.element_size()))
        parts = torch.split(rows.contiguous(), most)
        self.sums[str(batch)] = {
            "dtype": KINDS[rows.dtype],
            "width": rows.shape[1],
            "parts": [[len(part), 0] for part in parts],
        }
        left = _Left(len(parts), self._room.release)
        for number, part in enumerate(parts):
            self._queue.put((batch, number, part, event, left))

    def _run(self) -> None:
        buffers: Buffers | None = None
        while (found := self._queue.get()) is not None:
            batch, number, rows, event, left = found
            try:
                if self._failure is None:
                    buffers = buffers or Buffers(self._device)
                    host = rows if event is None else buffers.download(rows, event)
                    total = write_rows(self._folder / _name(batch, number), host)
                    self.sums[str(batch)]["parts"][number][1] = total
                    del host
            except BaseException as error:
                self._failure = error
            del rows, found
            left.one()


class _Left:
    """Parts of a batch that are not written yet; `end` is called when there is none."""

    def __init__(self, count: int, end: Callable[[], None]) -> None:
        self._count, self._end, self._lock = count, end, threading.Lock()

    def one(self) -> None:
        with self._lock:
            self._count -= 1
            done = not self._count
        if done:
            self._end()


def threads() -> int:
    """Threads that write, or read, parts: half of the cores, 2 to 8."""
    return min(_MOST_THREADS, max(2, cores() // 2))


def _name(batch: int, part: int) -> str:
    return f"{batch}-{part}.safetensors"


def _put(ready: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _write_json(file: Path, value: Any) -> None:
    with replaced(file, sync=False) as aside:
        aside.write_text(json.dumps(value), encoding="utf-8")
