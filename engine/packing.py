"""Reductions and results as a small header and plain arrays, for other processes and for files.

torch pickles a tensor by copying its bytes into the stream; here the stream holds numbers of arrays instead, so
that a covariance of 134 MB goes to a socket or a file from where it lies.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap.kernels import Workspace
from modegap.stores.durable import replaced

from .errors import EngineError

_FORMAT = "modegap-packed-1"
_LOCKED = 1 << 20
"""Bytes from which on an array on a GPU is copied to page-locked memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A value without its arrays, and those, C-contiguous and in the order in which they were met."""

    header: bytes
    arrays: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return len(self.header) + sum(array.nbytes for array in self.arrays)


def pack(value: Any, pickler: type[pickle.Pickler] = pickle.Pickler) -> Packed:
    """The value in parts; tensors on a GPU are copied to the host, scratch memory is left out.

    Args:
        value: anything that pickles.
        pickler: a pickler that takes more kinds of values (functions of a script, say).
    """
    return _packed(*split(value, pickler))


def _packed(header: bytes, values: Sequence[torch.Tensor | np.ndarray]) -> Packed:
    arrays = (plain(one) for one in values)
    return Packed(header, tuple(np.ascontiguousarray(array).reshape(array.shape) for array in arrays))


def unpack(packed: Packed) -> Any:
    """The value; its arrays are those of `packed` where they may be written to, and copies elsewhere."""

    def restored(kind: str, number: int) -> Any:
        array = packed.arrays[number]
        return remade(kind, array if array.flags.writeable else array.copy())

    return _Unpickler(io.BytesIO(packed.header), restored).load()


def split(
    value: Any, pickler: type[pickle.Pickler] = pickle.Pickler
) -> tuple[bytes, list[torch.Tensor | np.ndarray]]:
    """A header, and the value's tensors and arrays themselves, wherever they are; scratch memory is left out."""
    stream = io.BytesIO()
    made = _packing(pickler)(stream, protocol=5)
    made.dump(value)
    return stream.getvalue(), made.values


def joined(header: bytes, values: Sequence[torch.Tensor | np.ndarray]) -> Any:
    """The value that `split` took apart, made of these tensors and arrays."""
    return _Unpickler(io.BytesIO(header), lambda kind, number: values[number]).load()


def save_packed(path: Path, value: Any, pickler: type[pickle.Pickler] = pickle.Pickler) -> int:
    """Put a value into a file: written aside, synced, renamed. Returns its bytes."""
    from safetensors.numpy import save_file

    packed = pack(value, pickler)
    header = base64.b64encode(packed.header).decode()
    facts = {"format": _FORMAT, "header": header, "crc32c": json.dumps(_checksums(packed))}
    with replaced(path) as aside:
        save_file({str(i): array for i, array in enumerate(packed.arrays)}, aside, metadata=facts)
    return packed.nbytes


def load_packed(path: Path) -> Any:
    """The value that `save_packed` left; only for files of the user's own, since pickles can run code.

    Raises:
        EngineError: the file is damaged or holds something else.
        FileNotFoundError: there is none.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            if facts.get("format") != _FORMAT:
                raise EngineError(f"{path} holds something else than a partial result: remove it")
            count = len(list(file.keys()))
            arrays = tuple(file.get_tensor(str(i)) for i in range(count))
    except SafetensorError as error:
        raise EngineError(f"{path} cannot be read ({error}): remove it") from error
    packed = Packed(base64.b64decode(facts["header"]), arrays)
    if _checksums(packed) != json.loads(facts["crc32c"]):
        raise EngineError(f"{path} is damaged: remove it")
    return unpack(packed)


def _checksums(packed: Packed) -> list[int]:
    from modegap.stores.checksum import crc32c

    return [
        crc32c(packed.header),
        *(crc32c(array.reshape(-1).view(np.uint8).data) for array in packed.arrays),
    ]


def _packing(base: type[pickle.Pickler]) -> Callable[..., Any]:
    class Packing(base):  # type: ignore[misc, valid-type]  # the base is chosen at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.values: list[torch.Tensor | np.ndarray] = []  # kept alive: ids are of objects that live
            self._known: dict[int, tuple[str, int]] = {}

        def persistent_id(self, value: Any) -> tuple[str, int] | None:
            if isinstance(value, Workspace):
                return ("workspace", 0)
            if type(value) is not torch.Tensor and type(value) is not np.ndarray:
                return None
            if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
                return None
            if id(value) not in self._known:
                self._known[id(value)] = (kind_of(value), len(self.values))
                self.values.append(value)
            return self._known[id(value)]

    return Packing


def kind_of(value: torch.Tensor | np.ndarray) -> str:
    """Whether it is a tensor or an array, for `remade`."""
    if isinstance(value, np.ndarray):
        return "numpy"
    return "bfloat16" if value.dtype is torch.bfloat16 else "torch"


def plain(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """The value as an array on the host, of the same memory if it is there."""
    if isinstance(value, np.ndarray):
        return value
    host = value.detach() if value.device.type == "cpu" else _fetched(value.detach())
    # numpy has no bfloat16
    array: np.ndarray = (host.view(torch.int16) if host.dtype is torch.bfloat16 else host).numpy()
    return array


def _fetched(value: torch.Tensor) -> torch.Tensor:
    """A copy on the host. To fresh pages 134 MB took 40 ms; torch keeps page-locked memory for the next copy."""
    if not value.is_cuda or value.nbytes < _LOCKED:
        return value.cpu()
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value)


def remade(kind: str, array: np.ndarray) -> torch.Tensor | np.ndarray:
    """What `plain` and `kind_of` were of, in the memory of the array."""
    return _RESTORE[kind](array)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, restored: Callable[[str, int], Any]) -> None:
        super().__init__(stream)
        self._restored = restored
        self._made: dict[tuple[str, int], Any] = {}

    def persistent_load(self, key: tuple[str, int]) -> Any:
        kind, number = key
        if kind == "workspace":
            return Workspace()
        if key not in self._made:
            self._made[key] = self._restored(kind, number)
        return self._made[key]


_RESTORE: dict[str, Callable[[np.ndarray], torch.Tensor | np.ndarray]] = {
    "numpy": lambda array: array,
    "torch": torch.from_numpy,
    "bfloat16": lambda array: torch.from_numpy(array).view(torch.bfloat16),
}


class Part:
    """A reduction with what it has seen, that travels without copies; `nbytes` is what would travel.

    What lies on a GPU stays there until the part is pickled; then it arrives on the other side's host.

    Attributes:
        reduction: the reduction.
        rows: rows it has seen.
    """

    __slots__ = ("_bytes", "_from", "reduction", "rows")

    def __init__(self, reduction: Any, rows: int = 0) -> None:
        """Take over a reduction."""
        self.reduction, self.rows = reduction, rows
        self._bytes: int | None = None
        # of the arrays that left a GPU on their way here: their number, and which it was
        self._from: dict[int, str] = {}

    def merged(self, other: Part) -> Part:
        """Both, on a GPU where one was; neither is changed, so that a merge that was cut short can be done again."""
        ours, theirs = self._back(), other._back()
        whole = ours.fresh().merge(ours).merge(theirs)
        return Part(whole, self.rows + other.rows)

    def _back(self) -> Any:
        """The reduction with its arrays where they were before they travelled; on the host where no such GPU is."""
        gpus = range(torch.cuda.device_count()) if self._from else ()
        places = {i: torch.device(name) for i, name in self._from.items()}
        if not places or any((place.index or 0) not in gpus for place in places.values()):
            return self.reduction
        header, values = split(self.reduction, best_pickler())
        moved = [_moved(value, places.get(i)) for i, value in enumerate(values)]
        return joined(header, moved)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed reduction; nothing is copied to count them."""
        if self._bytes is None:
            header, values = split(self.reduction, best_pickler())
            self._bytes = len(header) + sum(int(value.nbytes) for value in values)
        return self._bytes

    def __sizeof__(self) -> int:
        """What a scheduler counts as this value's memory."""
        return self.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        """Header and arrays: protocol 5 takes the latter out of the stream."""
        header, values = split(self.reduction, best_pickler())
        devices = {
            i: str(value.device)
            for i, value in enumerate(values)
            if isinstance(value, torch.Tensor) and value.device.type != "cpu"
        }
        packed = _packed(header, values)
        return _part, (packed.header, packed.arrays, self.rows, {**self._from, **devices})


def _part(header: bytes, arrays: tuple[np.ndarray, ...], rows: int, devices: dict[int, str]) -> Part:
    part = Part(unpack(Packed(header, arrays)), rows)
    part._from = devices
    return part


def _moved(value: torch.Tensor | np.ndarray, place: torch.device | None) -> torch.Tensor | np.ndarray:
    return value.to(place) if place is not None and isinstance(value, torch.Tensor) else value


class Pilot:
    """Takes the first rows of a pass for what every share of it starts from.

    A reduction of blocks chooses a shift from the first one. It is chosen here, from the block that one process
    would take, and `fresh` hands it on. Every worker waits for it, so a reduction may have a method `settle` that does
    no more than that.

    Attributes:
        reduction: what has taken them; `fresh` of it is what shares start from.
    """

    def __init__(self, reduction: Any, boundary: int) -> None:
        """For a reduction, which stays as it was, of blocks of `boundary` rows."""
        self.reduction = reduction.fresh()
        self._left = boundary
        self._take = self.reduction.settle if _settles(type(self.reduction)) else self.reduction.update

    def take(self, batch: Any) -> bool:
        """Look at the next rows; returns whether a block is full now."""
        self._take(batch)
        self._left -= len(batch)
        return self._left <= 0


def settled(reduction: Any, batches: Iterable[Any], boundary: int) -> tuple[Any, int]:
    """What every share of a pass starts from, and the bytes of a share's part.

    Args:
        reduction: it stays as it was.
        batches: of the pass, from its first row on; as many are taken as make a block.
        boundary: rows a block.
    """
    pilot = Pilot(reduction, boundary)
    for batch in batches:
        if pilot.take(batch):
            break
    # A block that is not full settles its shift when it is merged as the end of the rows.
    return pilot.reduction.fresh(), Part(pilot.reduction).nbytes


def _settles(kind: type) -> bool:
    """Whether its `settle` belongs to its `update`: a class may change what `update` makes of the rows."""
    owners = [[name in vars(one) for one in kind.__mro__] for name in ("settle", "update")]
    return any(owners[0]) and owners[0].index(True) <= owners[1].index(True)


def best_pickler() -> type[pickle.Pickler]:
    """cloudpickle's where it is installed (it is wherever Dask is): it takes classes of scripts too."""
    try:
        found: type[pickle.Pickler] = importlib.import_module("cloudpickle").Pickler
    except ImportError:
        return pickle.Pickler
    return found
