"""`Capturer`: one forward, the wanted tensors, and which of their rows are real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.collate import Inputs
from modegap.engine.models.hooks import attached, evaluating
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint

from .lengths import StreamRule, learn_rule


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A batch at one hook point.

    Attributes:
        x: [B, T, d] in the model's dtype, on the device that computed it.
        mask: bool [B, T], true on the rows of the sample, false on padding.
        rule: how many rows a sample has there; None for the `llm` and `text` streams.
    """

    x: torch.Tensor
    mask: torch.Tensor
    rule: StreamRule | None


class _Stop(BaseException):
    """Ends a forward whose last wanted tensor has come; no `except Exception` on the way may swallow it."""


class Capturer:
    """Context manager; call it with a placed batch (`LoadedModel.collate`).

    Every forward stops at the last wanted point: layers above it and the language model head never run. Hooks
    are there inside the `with` block only, and the model is in evaluation mode there.
    """

    def __init__(self, loaded: LoadedModel, points: Sequence[HookPoint]) -> None:
        """`points` as `LoadedModel.select` gives them."""
        self.loaded = loaded
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
    def __call__(self, inputs: Inputs) -> dict[str, Block]:
        """The blocks by point name.

        Raises:
            EngineError: text samples where media are needed, a module that did not run or ran twice, rows
                that do not fit the tokens, or a value that is not finite (names the sample).
        """
        media_point = next((point for point in self._hooked if point.stream != "llm"), None)
        if media_point is not None and not any(inputs.media_counts):
            raise EngineError(
                f"sample {inputs.ids[0]!r} brings no media, so nothing passes {media_point.name}; "
                "ask for text_embedding or llm_hidden_<k>"
            )
        try:
            self._forward(inputs)
            adapter = self._seen.get("adapter_output") if self._aligned else None
            found: dict[str, Block] = {}
            for point in self.points:
                found[point.name] = (
                    self._text(inputs) if point.stream == "text" else self._block(point, inputs, adapter)
                )
                _check_finite(found[point.name], point, inputs)
            return found
        finally:
            self._seen.clear()  # a reference kept here would hold a batch on the device until the next one

    def _forward(self, inputs: Inputs) -> None:
        if not self._hooked:
            return
        try:
            self.loaded.forward(inputs)
        except _Stop:
            return
        missing = [point for point in self._hooked if point.name not in self._seen]
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
            if len(self._seen) == len(self._hooked):
                raise _Stop

        return read

    def _text(self, inputs: Inputs) -> Block:
        for sample_id, text in zip(inputs.ids, inputs.texts, strict=True):
            if not text:
                raise EngineError(f"sample {sample_id!r} has no text to embed; give it one or leave it out")
        lengths = torch.tensor([len(text) for text in inputs.texts], device=self.loaded.device)
        width = int(lengths.max())
        padded = torch.zeros((len(inputs), width), dtype=torch.long)
        for i, text in enumerate(inputs.texts):
            padded[i, : len(text)] = torch.tensor(text)
        point = self.loaded.points["text_embedding"]
        x = self.loaded.model.get_submodule(point.module_path)(padded.to(self.loaded.device))
        return Block(x, torch.arange(width, device=x.device) < lengths.to(x.device)[:, None], None)

    def _block(self, point: HookPoint, inputs: Inputs, adapter: torch.Tensor | None) -> Block:
        x = self._seen[point.name]
        if point.stream == "llm":
            if x.dim() != 3 or x.shape[:2] != inputs.attention.shape:
                raise EngineError(
                    f"hook point {point.name}: got shape {list(x.shape)} for {list(inputs.attention.shape)} "
                    "tokens; "
                    "the processor must expand every placeholder (check its patch_size), or name another "
                    "module"
                )
            return Block(x, inputs.attention.to(x.device), None)
        rule = learn_rule(point, tuple(x.shape), None if adapter is None else tuple(adapter.shape), inputs)
        lengths = rule.lengths(inputs.media_counts, inputs.frames)
        if x.dim() == 3 and x.shape[0] == len(inputs) and max(lengths) <= x.shape[1]:
            ends = torch.tensor(lengths, device=x.device)[:, None]
            return Block(x, torch.arange(x.shape[1], device=x.device) < ends, rule)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) != sum(lengths):
            raise EngineError(
                f"hook point {point.name}: {point.module_path} put out {len(rows)} rows for {sum(lengths)} "
                "expected ones; the model rearranges rows after it: name the module that comes last"
            )
        packed = torch.nn.utils.rnn.pad_sequence(list(torch.split(rows, lengths)), batch_first=True)
        ends = torch.tensor(lengths, device=x.device)[:, None]
        return Block(packed, torch.arange(packed.shape[1], device=x.device) < ends, rule)


def _check_finite(block: Block, point: HookPoint, inputs: Inputs) -> None:
    bad = ~torch.isfinite(block.x).all(dim=-1) & block.mask
    if bool(bad.any()):
        row = int(bad.any(dim=1).nonzero()[0, 0])
        raise EngineError(
            f"sample {inputs.ids[row]!r} has NaN or infinite values at {point.name} ({block.x.dtype}); load "
            "the model "
            "with dtype bfloat16 or float32, or leave the sample out"
        )
