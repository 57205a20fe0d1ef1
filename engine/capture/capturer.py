"""`Capturer`: one forward, the wanted tensors, and which of their rows are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.collate import TEXT, Inputs
from modegap.engine.models.fused import Fused, fused_layers
from modegap.engine.models.hooks import attached, evaluating
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint

from .lengths import StreamRule, learn_rule


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A batch at one hook point.

    Attributes:
        x: [B, T, d] in the model's dtype, on the device that computed it.
        mask: bool [B, T], true on the rows of the sample, false on padding; on the host, so that counting
            rows waits for no kernel.
        rule: how many rows a sample has there; None for the `llm` and `text` streams.
        media: bool [B, T], true on the rows that stand for media; on the host.
    """

    x: torch.Tensor
    mask: torch.Tensor
    rule: StreamRule | None
    media: torch.Tensor

    def rows(self, index: int) -> torch.Tensor:
        """The rows [t, d] of one sample."""
        return self.x[index][self.mask[index].to(self.x.device)]


class _Stop(BaseException):
    """Ends a forward whose last wanted tensor has come; no `except Exception` on the way may swallow it."""


class Capturer:
    """Context manager; call it with a placed batch (`LoadedModel.collate`).

    Every forward stops at the last wanted point: layers above it and the language model head never run. Hooks
    are there inside the `with` block only, and the model is in evaluation mode there.

    Attributes:
        changed: whether some layer of the model runs fused, inside the block.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        points: Sequence[HookPoint],
        forward: Callable[[Inputs], object] | None = None,
        *,
        fused: bool = False,
    ) -> None:
        """`points` as `LoadedModel.select` gives them; `forward` runs a batch instead of the whole model, and
        ends where it chooses; `fused` see `fused_layers`."""
        self.loaded = loaded
        self._own_forward, self._fused = forward, fused
        self.changed = False
        self.points = tuple(points)
        hooked = [point for point in self.points if point.stream != "text"]
        adapter = loaded.points.get("adapter_output")
        # rows of another stream (cross-attention) say nothing about placeholders
        self._aligned = adapter is not None and adapter.stream == "adapter"
        own = any(point.stream not in ("llm", "text", "adapter") for point in hooked)
        if own and self._aligned and adapter is not None and adapter not in hooked:
            hooked.append(adapter)  # its length tells which encoder rows are padding
        self._hooked = hooked
        self._seen: dict[str, torch.Tensor] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Attaches the hooks."""
        self._stack.enter_context(evaluating(self.loaded.model))
        if self._fused:
            found = self._stack.enter_context(fused_layers(self.loaded.model))
            self.changed = found != Fused(0, 0, 0)
        self._stack.enter_context(
            attached(self.loaded.model, [(p, self._reader(p.name)) for p in self._hooked])
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the hooks and puts the modes back."""
        self._seen.clear()
        self._stack.close()

    @torch.no_grad()
    def __call__(self, inputs: Inputs, host: Inputs | None = None) -> dict[str, Block]:
        """The blocks by point name.

        On a GPU the forward is only queued when this returns, as far as the model itself lets it: given
        `host`, nothing here waits for the device. Values are not looked at; see `check_finite`.

        Args:
            inputs: the batch as `LoadedModel.place` puts it.
            host: the same batch before it was placed.

        Raises:
            EngineError: text samples where media are needed, a module that did not run or ran twice, or rows
                that do not fit the tokens.
        """
        host = _on_host(inputs) if host is None else host
        media_point = next((point for point in self._hooked if point.stream != "llm"), None)
        if media_point is not None and not any(host.media_counts):
            raise EngineError(
                f"sample {inputs.ids[0]!r} brings no media, so nothing passes {media_point.name}; "
                "ask for text_embedding or llm_hidden_<k>"
            )
        try:
            self._forward(inputs)
            adapter = self._seen.get("adapter_output") if self._aligned else None
            return {
                point.name: self._text(host) if point.stream == "text" else self._block(point, host, adapter)
                for point in self.points
            }
        finally:
            self._seen.clear()  # a reference kept here would hold a batch on the device until the next one

    def _forward(self, inputs: Inputs) -> None:
        if self._own_forward is not None:
            self._own_forward(inputs)
        elif self._hooked:
            try:
                self.loaded.forward(inputs)
            except _Stop:
                return
        missing = [point for point in self._hooked if point.name not in self._seen]
        if not missing:
            return
        raise EngineError(
            f"hook point {missing[0].name}: {missing[0].module_path} did not run in the forward; name "
            "another module"
        )

    def _reader(self, name: str) -> Callable[[torch.Tensor], None]:
        def read(tensor: torch.Tensor) -> None:
            if name in self._seen:
                raise EngineError(
                    f"hook point {name} runs more than once in a forward; name a module that runs once a "
                    "batch"
                )
            # images of several tiles: [B, tiles, patches, d]
            self._seen[name] = tensor.flatten(1, -2) if tensor.dim() > 3 else tensor
            if self._own_forward is None and len(self._seen) == len(self._hooked):
                raise _Stop

        return read

    def _text(self, host: Inputs) -> Block:
        for sample_id, text in zip(host.ids, host.texts, strict=True):
            if not text:
                raise EngineError(f"sample {sample_id!r} has no text to embed; give it one or leave it out")
        lengths = [len(text) for text in host.texts]
        padded = torch.zeros((len(host), max(lengths)), dtype=torch.long)
        for i, text in enumerate(host.texts):
            padded[i, : len(text)] = torch.tensor(text)
        point = self.loaded.points["text_embedding"]
        x = self.loaded.model.get_submodule(point.module_path)(padded.to(self.loaded.device))
        mask = _first(lengths, x.shape[1])
        return Block(x, mask, None, torch.zeros_like(mask))

    def _block(self, point: HookPoint, host: Inputs, adapter: torch.Tensor | None) -> Block:
        x = self._seen[point.name]
        if point.stream == "llm":
            if x.dim() != 3 or x.shape[:2] != host.attention.shape:
                raise EngineError(
                    f"hook point {point.name}: got shape {list(x.shape)} for {list(host.attention.shape)} "
                    "tokens; "
                    "the processor must expand every placeholder (check its patch_size), or name another "
                    "module"
                )
            return Block(x, host.attention, None, host.modality > TEXT)
        rule = learn_rule(point, tuple(x.shape), None if adapter is None else tuple(adapter.shape), host)
        lengths = rule.lengths(host.media_counts, host.frames)
        if not (x.dim() == 3 and x.shape[0] == len(host) and max(lengths) <= x.shape[1]):
            rows = x.reshape(-1, x.shape[-1])
            if len(rows) != sum(lengths):
                raise EngineError(
                    f"hook point {point.name}: {point.module_path} put out {len(rows)} rows for "
                    f"{sum(lengths)} expected ones; the model rearranges rows after it: name the module that "
                    "comes last"
                )
            x = torch.nn.utils.rnn.pad_sequence(list(torch.split(rows, lengths)), batch_first=True)
        mask = _first(lengths, x.shape[1])
        return Block(x, mask, rule, mask)


def check_finite(blocks: Mapping[str, Block], ids: Sequence[str]) -> None:
    """Raises EngineError for a value that is NaN or infinite; names sample and point.

    Args:
        blocks: what a `Capturer` returned.
        ids: the ids of the batch.
    """
    for name, block in blocks.items():
        bad = ~torch.isfinite(block.x).all(dim=-1).cpu() & block.mask
        if bool(bad.any()):
            raise not_finite(ids[int(bad.any(dim=1).nonzero()[0, 0])], name, block.x.dtype)


def not_finite(sample_id: str, point: str, dtype: torch.dtype) -> EngineError:
    """The error of a sample whose values at a point are not all finite."""
    return EngineError(
        f"sample {sample_id!r} has NaN or infinite values at {point} ({dtype}); load the model with dtype "
        "bfloat16 or float32, or leave the sample out"
    )


def _first(lengths: Sequence[int], width: int) -> torch.Tensor:
    """Bool [B, width], true on the first `lengths` positions."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def _on_host(inputs: Inputs) -> Inputs:
    """The batch with everything that is counted on the host; media stay where they are."""
    masks = {name: value.cpu() for name, value in inputs.tensors.items() if name.endswith("mask")}
    ids = {"input_ids": inputs.tensors["input_ids"].cpu()} if "input_ids" in inputs.tensors else {}
    return replace(
        inputs,
        tensors={**inputs.tensors, **masks, **ids},
        attention=inputs.attention.cpu(),
        modality=inputs.modality.cpu(),
        target_mask=inputs.target_mask.cpu(),
    )
