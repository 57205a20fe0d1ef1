"""`LayerFeed`: the weights of one layer after another, uploaded while the one before computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from .checkpoint import CheckpointFiles
from .skeleton import set_parameter

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped


class LayerFeed:
    """Gives a model the weights of one decoder layer at a time; use it as a context manager.

    A thread reads the next layer's tensors from the mapped files into two pinned buffers in turn and uploads
    them on a stream of its own: the device holds two layers, the host two tensors. On the host, weights that
    already have the model's dtype stay views of the mapped file.

    Args:
        files: the checkpoint.
        model: a model whose layers are on `meta`.
        layers: parameter name to key, by layer.
        order: the layers, in the order in which they will be asked for.
        device: where the weights go.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        model: nn.Module,
        layers: Mapping[int, Mapping[str, str]],
        order: Sequence[int],
        device: torch.device,
    ) -> None:
        """Reads nothing yet."""
        self._files, self._model, self._layers = files, model, layers
        self._order, self._device = list(order), device
        self._kinds = {name: p.dtype for name, p in model.named_parameters()}
        self._ready: queue.Queue[Any] = queue.Queue()
        self._room = threading.Semaphore(1)  # one layer ahead of the one in use
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modegap-layers", daemon=True)

    def __enter__(self) -> Self:
        """Starts reading the first layer."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and takes the weights away."""
        self._stopped.set()
        self._room.release()
        self._thread.join()
        for k in self._order:
            self.drop(k)

    def take(self, k: int) -> None:
        """Puts layer k's weights in place, waiting for them; the next layer's are then read.

        Raises:
            EngineError: a file that cannot be read.
        """
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        layer, tensors, event = found
        assert layer == k, f"layer {layer} came where {k} was due"
        if event is not None:
            stream = _cuda.current_stream(self._device)
            stream.wait_event(event)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        for name, tensor in tensors.items():
            set_parameter(self._model, name, tensor)
        self._room.release()

    def drop(self, k: int) -> None:
        """Takes layer k's weights away again."""
        for name in self._layers[k]:
            path, _, leaf = name.rpartition(".")
            old = self._model.get_submodule(path)._parameters[leaf]
            if old is not None and old.device.type != "meta":
                set_parameter(self._model, name, old.detach().to("meta"))

    def _run(self) -> None:
        try:
            upload = _Upload(self._device) if self._device.type == "cuda" else None
            for k in self._order:
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._ready.put(self._read(k, upload))
        except BaseException as error:
            self._ready.put(error)

    def _read(self, k: int, upload: _Upload | None) -> tuple[int, dict[str, torch.Tensor], Any]:
        tensors = {}
        for name, key in self._layers[k].items():
            mapped = self._files.read(key)
            kind = self._kinds[name]
            tensors[name] = mapped.to(self._device, kind) if upload is None else upload.send(mapped, kind)
        return k, tensors, None if upload is None else upload.mark()


class _Upload:
    """Copies tensors to a device through two pinned buffers, each refilled while the other is on its way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = _cuda.Stream(device)
        self._buffers = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        self._sent: list[Any] = [_cuda.Event(), _cuda.Event()]
        self._turn = 0

    def send(self, mapped: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        turn, size = self._turn, mapped.numel() * mapped.element_size()
        self._turn = 1 - turn
        self._sent[turn].synchronize()
        if self._buffers[turn].numel() < size:
            self._buffers[turn] = torch.empty(0, dtype=torch.uint8)
            self._buffers[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pinned = self._buffers[turn][:size].view(mapped.dtype).view(mapped.shape)
        pinned.copy_(mapped)
        with _cuda.stream(self._stream):
            placed = pinned.to(self._device, non_blocking=True).to(kind)
            self._sent[turn].record(self._stream)
        return placed

    def mark(self) -> Any:
        event = _cuda.Event()
        event.record(self._stream)
        return event
