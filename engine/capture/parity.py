"""The parity check: what is stored against a plain forward of one sample at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modegap.engine.datasets.base import Sample
from modegap.engine.errors import EngineError
from modegap.engine.models.collate import Inputs
from modegap.engine.models.hooks import attached, evaluating
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint

from .capturer import Block

# Unit roundoffs by which a batched and a single forward may differ. Measured on 32 random layers of width
# 512: 27 in fp32, whose sums over the width are themselves rounded; 7 in bf16, whose sums are kept in fp32.
# The next layer's output was 0.2 of a row's norm away, far above either.
SLACK = {torch.float64: 256, torch.float32: 256, torch.float16: 24, torch.bfloat16: 24}
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# Fused layers round once where the model's own code rounds several times. Against fp64 both are 4 to 5 unit roundoffs
# away there in bf16, fused a little less; from each other 6.5, and 13.4 on a LLaVA-1.5-7B shape.
FUSED_SLACK = 2
FP16_MAX = 65504.0
_HIDDEN = re.compile(r"llm_hidden_(\d+)")


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences at one point, over rows of all checked samples.

    Attributes:
        max_abs: largest absolute difference of a value.
        max_rel: largest `||stored - plain|| / ||plain||` of a row.
        tolerance: what `max_rel` may be.
        samples: how many samples were compared.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    samples: int

    def to_json(self) -> dict[str, float | int]:
        """The fields, rounded to three significant digits for provenance."""
        return {
            "max_abs": float(f"{self.max_abs:.3g}"),
            "max_rel": float(f"{self.max_rel:.3g}"),
            "tolerance": float(f"{self.tolerance:.3g}"),
            "samples": self.samples,
        }


def check_parity(
    loaded: LoadedModel,
    points: Sequence[HookPoint],
    samples: Sequence[Sample],
    blocks: dict[str, Block],
    *,
    dtype: str,
    fused: bool = False,
    target: bool = False,
    prompt: str | None = None,
) -> dict[str, Parity]:
    """Compares captured batches with transformers' own `output_hidden_states`, sample by sample and unpadded.

    `llm_hidden_<k>` is compared with `hidden_states[k]`, `llm_final` with the last one; other points with
    what a plain torch hook sees in that same forward, which runs to its end.

    Args:
        loaded: the model.
        points: what was captured.
        samples: the first samples of the batch; as many are compared.
        blocks: the captured batch.
        dtype: stored dtype, whose rounding is applied to the captured rows first.
        fused: layers ran fused in the captured batch; they never do in the forwards that it is compared with.
        target: as in the batch.
        prompt: as in the batch.

    Raises:
        EngineError: a difference above tolerance, or another number of rows; names point and sample.
    """
    worst = {point.name: (0.0, 0.0) for point in points}
    limit = tolerance(loaded, dtype, fused=fused)
    for index, sample in enumerate(samples):
        inputs = loaded.collate([sample], target=target, prompt=prompt)
        plain = _plain_forward(loaded, points, inputs)
        for point in points:
            block = blocks[point.name]
            found = block.rows(index)
            gap = compared(point, sample.id, found, plain[point.name], dtype, limit, fused=fused)
            worst[point.name] = (max(worst[point.name][0], gap[0]), max(worst[point.name][1], gap[1]))
    return {name: Parity(*gap, limit, len(samples)) for name, gap in worst.items()}


def compared(
    point: HookPoint,
    sample_id: str,
    captured: torch.Tensor,
    plain: torch.Tensor,
    dtype: str,
    limit: float,
    *,
    fused: bool = False,
) -> tuple[float, float]:
    """Largest difference of a value, and of a row relative to its norm, from a plain forward's [t, d].

    Raises:
        EngineError: the latter is above `limit`, or the number of rows differs; names point and sample.
    """
    gap = _differences(point, sample_id, captured, plain, dtype)
    if not gap[1] <= limit:
        remedy = "capture with fused=False" if fused else "name the module of this point with points="
        raise EngineError(
            f"parity check failed at {point.name} ({point.module_path}): sample {sample_id!r} is {gap[1]:.2g} of "
            f"a row's norm away from a plain forward, allowed is {limit:.2g}; {remedy}, or report the model"
        )
    return gap


def _differences(
    point: HookPoint, sample_id: str, captured: torch.Tensor, plain: torch.Tensor, dtype: str
) -> tuple[float, float]:
    ours, scale = _stored(captured, dtype)
    # encoders pad to a fixed length: the plain forward may have more rows, the sample's own come first
    if len(plain) < len(ours) or (point.stream == "llm" and len(plain) != len(ours)):
        raise EngineError(
            f"parity check failed at {point.name}: sample {sample_id!r} has {len(ours)} rows, a plain "
            f"forward {len(plain)}; name the module of this point with points="
        )
    theirs = plain[: len(ours)].double().to(ours.device)
    gap = ours - theirs
    # fp16 has a fixed step of 2**-24 below 2**-14: without this floor tiny rows could not pass
    floor = scale * 2.0**-25 * math.sqrt(gap.shape[1])
    excess = (gap.norm(dim=1) - floor).clamp(min=0)
    relative = excess / theirs.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(gap.abs().max()), float(relative.max())


def tolerance(loaded: LoadedModel, dtype: str, *, fused: bool = False) -> float:
    """Largest allowed difference of a row: the stored dtype's rounding plus that of another order of sums.

    `fused` where the other forward ran with the model's own code instead of fused layers.
    """
    compute = (
        SLACK.get(loaded.dtype, 24) * ROUNDOFF.get(loaded.dtype, 2.0**-8) * (FUSED_SLACK if fused else 1)
    )
    if loaded.device.type == "cuda" and (
        torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    ):
        compute = max(compute, 24 * 2.0**-11)  # TF32 keeps 10 bits of the factors, as fp16 does
    return (2.0**-11 if dtype == "float16" else 2.0**-24) + compute


def _stored(rows: torch.Tensor, dtype: str) -> tuple[torch.Tensor, float]:
    """The rows after a round trip through the stored dtype, and the power-of-two scale it needed."""
    rows = rows.double()
    if dtype != "float16":
        return rows.float().double(), 1.0
    largest = float(rows.abs().max()) if rows.numel() else 0.0
    scale = 2.0 ** max(0, math.frexp(largest / FP16_MAX)[1])
    return (rows / scale).half().double() * scale, scale


@torch.no_grad()
def _plain_forward(
    loaded: LoadedModel, points: Sequence[HookPoint], inputs: Inputs
) -> dict[str, torch.Tensor]:
    """Rows [t, d] of one unpadded sample at each point."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda tensor: seen.update({name: tensor.reshape(-1, tensor.shape[-1])})

    text = [point for point in points if point.stream == "text"]
    hooked = [point for point in points if point.stream != "text"]
    if hooked:
        with (
            evaluating(loaded.model),
            attached(loaded.model, [(point, keep(point.name)) for point in hooked]),
        ):
            hidden = getattr(loaded.forward(inputs, output_hidden_states=True), "hidden_states", None)
        if hidden:
            for point in hooked:
                number = _HIDDEN.fullmatch(point.name)
                if number and int(number[1]) < len(hidden):
                    seen[point.name] = hidden[int(number[1])][0]
                elif point.name == "llm_final":
                    seen[point.name] = hidden[-1][0]
    for point in text:
        embed: nn.Module = loaded.model.get_submodule(point.module_path)
        seen[point.name] = embed(torch.tensor([inputs.texts[0]], device=loaded.device))[0]
    return seen
