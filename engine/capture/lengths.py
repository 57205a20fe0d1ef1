"""How many rows a sample has at a point of the encoder or adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

from modegap.engine.errors import EngineError
from modegap.engine.models.collate import Inputs
from modegap.engine.models.points import HookPoint


@dataclass(frozen=True, slots=True)
class StreamRule:
    """Rows a sample: `factor` times its placeholders, or its frames, or `factor` itself."""

    unit: Literal["placeholders", "frames", "sample"]
    factor: Fraction

    def lengths(self, placeholders: Sequence[int], frames: tuple[Sequence[int], int] | None) -> list[int]:
        """Rows of each sample.

        Args:
            placeholders: media tokens of each sample.
            frames: valid media frames of each sample and frames in all, where the processor masks them.

        Raises:
            EngineError: the rule needs frames and there are none.
        """
        if self.unit == "placeholders":
            return [int(self.factor * count) for count in placeholders]
        if self.unit == "sample":
            return [int(self.factor)] * len(placeholders)
        if frames is None:
            raise EngineError(
                "the processor gave a mask of its media before and gives none now; keep its options"
            )
        return [ceil(self.factor * count) for count in frames[0]]


def learn_rule(
    point: HookPoint, shape: tuple[int, ...], adapter: tuple[int, ...] | None, inputs: Inputs
) -> StreamRule:
    """The rule that explains a tensor of `shape` at `point`.

    The adapter has one row a placeholder. So has a module with as many positions as the adapter. Another
    module has its share of the frames where the processor masks frames, and else all its positions.

    Args:
        point: where.
        shape: [B, T, d], or [rows, d] for models that flatten the batch.
        adapter: shape at `adapter_output`, where there is one.
        inputs: the batch.

    Raises:
        EngineError: padding that no mask explains, or rows that do not divide among the samples.
    """
    counts = inputs.media_counts
    batch = len(shape) == 3 and shape[0] == len(inputs)
    same = point.stream == "adapter" or (adapter is not None and shape[:-1] == adapter[:-1])
    if same:
        if batch and any(count != shape[1] for count in counts) and inputs.frames is None:
            raise EngineError(
                f"hook point {point.name}: {point.module_path} put out {shape[1]} rows a sample, the prompt "
                "of "
                f"{inputs.ids[0]!r} has {counts[0]} placeholders; the model rearranges rows after it: take "
                'them where the decoder is fed, points={"adapter_output": "path.of.decoder:placeholders"}'
            )
        return StreamRule("placeholders", Fraction(1))
    if batch:
        if inputs.frames is not None:
            return StreamRule("frames", Fraction(shape[1], inputs.frames[1]))
        return StreamRule("sample", Fraction(shape[1]))
    rows = 1
    for size in shape[:-1]:
        rows *= size
    if inputs.frames is not None:
        frames = sum(inputs.frames[0])
        if rows >= frames > 0 and rows % frames == 0:  # tiles, of which the model dropped the padding
            return StreamRule("frames", Fraction(rows, frames))
    if not rows or rows % sum(counts):
        raise EngineError(
            f"hook point {point.name}: {rows} rows do not divide among {sum(counts)} placeholders; name "
            "another module"
        )
    return StreamRule("placeholders", Fraction(rows, sum(counts)))
