"""Every kernel in every shipped configuration, compiled ahead of time, with no GPU needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..ablate import triton as ablate
from ..crc32c import triton as checksum
from ..ghost_norms import triton as ghost
from ..projection_energy import triton as energy
from ..rotary import triton as rotary
from ..stage import triton as stage
from ..swiglu import triton as swiglu
from . import gram, segments
from .config import Config
from .plan import MAX_ROWS

ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True, slots=True)
class Spec:
    """One kernel in one configuration: argument types (as Triton writes them) and compile-time constants."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    @property
    def gluon(self) -> bool:
        """Whether the kernel is written in Gluon."""
        return self.name.startswith("hopper")


def specs(cc: int) -> Iterator[Spec]:
    """What ships for compute capability `cc` (80, 86, 90)."""
    half, full, wide, count = "*fp16", "*fp32", "*fp64", "i32"
    rows = {"stride_a": count, "stride_b": count, "ld": count, "p": count, "q": count}
    product = {"a": half, "b": half, "out": wide, "work": full, "units": "*i32", **rows}
    for lower, promote in ((True, True), (False, True), (True, False)):
        constants = {"FLUSH": MAX_ROWS, "LOWER": lower, "PROMOTE": promote}
        name = f"gram {'triangle' if lower else 'product'} {'precise' if promote else 'fast'}"
        yield _spec(name, gram.gram_kernel, product, constants, _newest(gram.CONFIGS, cc))
    fold = {"work": full, "folds": "*i32", "out": wide, "ld": count, "p": count, "q": count}
    yield Spec("fold", gram.fold_kernel, fold, {"LOWER": True, "ROWS": 8}, 4, 3)
    if cc == 90:
        yield from _hopper_specs()
    sums = {"g": half, "ends": "*i64", "u": full, "squares": full, "proj": full}
    sums |= dict.fromkeys(("d", "stride", "splits", "K"), count)
    yield _spec("segment norm", segments.norm_kernel, sums, {}, _newest(segments.NORM, cc))
    finish = {
        "squares": full,
        "proj": full,
        "ends": "*i64",
        "norms": wide,
        "out": wide,
        "parts": count,
        "K": count,
    }
    yield Spec("segment finish", segments.norm_finish_kernel, finish, {"BP": 32, "BK": 32}, 4, 3)
    mean = {"x": half, "mask": "*u8", "sums": full, "counts": "*i32"}
    mean |= dict.fromkeys(("T", "d", "stride_b", "stride_t", "splits"), count)
    yield _spec("segment mean", segments.mean_kernel, mean, {"DIVIDE": True}, _newest(segments.MEAN, cc))
    staged = {"x": half, "shift": full, "out": half, "sums": full, "inexact": "*i32"}
    staged |= {**dict.fromkeys(("n", "d", "stride_x", "stride_out"), count), "scale": "fp32"}
    yield _spec("stage", stage.stage_kernel, staged, {"REPORT": False}, _newest(stage.CONFIGS, cc))
    yield _spec("stage and sum", stage.stage_kernel, staged, {"REPORT": True}, _newest(stage.SUMMING, cc))
    yield from _checksum_specs(cc)
    yield from _energy_specs(cc)
    yield from _ablate_specs(cc)
    yield from _ghost_specs(cc)
    yield from _layer_specs(cc)


def _checksum_specs(cc: int) -> Iterator[Spec]:
    types = dict.fromkeys(("words", "steps", "shifts", "out"), "*i32")
    types |= dict.fromkeys(("stride", "lanes", "rows", "pad"), "i32")
    for padded in (True, False):
        name = f"checksum {'padded' if padded else 'whole'}"
        config = _newest(checksum.CONFIGS, cc)
        yield _spec(name, checksum.crc32c_kernel, types, {"PADDED": padded}, config)


def _energy_specs(cc: int) -> Iterator[Spec]:
    for name, table, dtype, low in (
        ("narrow", energy.NARROW, "*fp16", True),
        ("single", energy.SINGLE, "*fp16", False),
        ("wide", energy.WIDE, "*fp16", False),
        ("pair", energy.PAIR, "*fp16", True),
        ("fp32", energy.FP32, "*fp32", False),
    ):
        types = {"x": dtype, "high": dtype, "low": dtype, "part": "*fp32"}
        types |= dict.fromkeys(("n", "d", "columns", "stride"), "i32")
        constants = {"LOW": low, "GROUP": energy.GROUP}
        yield _spec(f"energy {name}", energy.energy_kernel, types, constants, _newest(table, cc))
    finish = {
        "part": "*fp32",
        "out": "*fp64",
        "scale": "*fp64",
        "blocks": "i32",
        "K": "i32",
        "columns": "i32",
    }
    yield _spec("energy finish", energy.energy_finish_kernel, finish, {}, energy.FINISH)


def _ablate_specs(cc: int) -> Iterator[Spec]:
    for dtype, tables in (("*fp16", ablate.HALF), ("*fp32", ablate.FULL)):
        for columns, table in tables.items():
            types = {"z": dtype, "out": dtype, "high": dtype, "low": dtype}
            types |= {**dict.fromkeys(("rows", "d", "stride"), "i32"), "scale": "fp32"}
            constants = {"KP": columns, "LOW": dtype == "*fp16"}
            yield _spec(
                f"ablate {dtype[1:]} {columns}", ablate.ablate_kernel, types, constants, _newest(table, cc)
            )

    cut = {"c": "*fp32", "main": "*fp16", "rest": "*fp16", "unit": "*fp32", "rows": "i32", "columns": "i32"}
    yield Spec("cut", ablate.cut_kernel, cut, {"BM": 8, "BK": 128}, 4, 3)
    types = dict.fromkeys(("z", "main", "rest"), "*fp16") | {"unit": "*fp32"}
    types |= dict.fromkeys(("out", "high", "low"), "*fp16")
    types |= {**dict.fromkeys(("rows", "d", "columns", "stride"), "i32"), "scale": "fp32"}
    yield _spec("subtract", ablate.subtract_kernel, types, {}, _newest(ablate.MANY, cc))


def _ghost_specs(cc: int) -> Iterator[Spec]:
    for dtype, tiles, entries in (
        ("*fp16", ghost.GRAM, ghost.ENTRIES),
        ("*fp32", ghost.FULL_GRAM, ghost.FULL_ENTRIES),
    ):
        types = {"a": dtype, "g": dtype, "part": "*fp32", "T": "i32", "d": "i32", "p": "i32"}
        yield _spec(f"ghost gram {dtype[1:]}", ghost.gram_norm_kernel, types, {}, _newest(tiles, cc))
        config = _newest(entries, cc)
        height = {"BM": config.blocks["BN"]}
        yield _spec(f"ghost entries {dtype[1:]}", ghost.entries_norm_kernel, types, height, config)


def _layer_specs(cc: int) -> Iterator[Spec]:
    half, count = "*bf16", "i32"
    types = dict.fromkeys(("gate", "up", "out"), half)
    types |= dict.fromkeys(("columns", "blocks", "stride_gate", "stride_up"), count)
    config = _newest(swiglu.CONFIGS, cc)
    yield _spec("swiglu", swiglu.swiglu_kernel, types, {}, config)
    types = dict.fromkeys(("gate", "up", "grad", "to_gate", "to_up"), half)
    types |= dict.fromkeys(("columns", "blocks", "stride_gate", "stride_up", "stride_grad"), count)
    yield _spec("swiglu backward", swiglu.swiglu_backward_kernel, types, {}, config)
    types = dict.fromkeys(("q", "k", "cos", "sin", "to_q", "to_k"), half)
    types |= dict.fromkeys(("T", "q_heads", "k_heads", "half", "parts"), count)
    types |= {f"{x}_{axis}": count for x in ("q", "k", "to_q", "to_k") for axis in "bht"}
    types |= {"angle_b": count, "angle_t": count}
    config = _newest(rotary.CONFIGS, cc)
    for backward in (False, True):
        constants = {"BACKWARD": backward, "BH": 32, "BD": int(config.blocks["PAIRS"]) // 32}
        name = "rotary backward" if backward else "rotary"
        yield Spec(name, rotary.rotary_kernel, types, constants, config.warps, config.stages)


def _hopper_specs() -> Iterator[Spec]:
    from ..ablate import hopper as ablate_hopper
    from . import hopper

    tile = f"tensordesc<fp16[{hopper.BK}, {{}}],{hopper.LAYOUT!r}>"
    types = {"da": tile.format(64), "db": tile.format(128), "out": "*fp64", "work": "*fp32"}
    types |= {"queue": "*i32", "heads": "*i32", **dict.fromkeys(("slots", "ld", "p", "q"), "i32")}
    for lower in (True, False):
        constants = {
            "BK": hopper.BK,
            "STAGES": hopper.STAGES,
            "FLUSH": MAX_ROWS,
            "LOWER": lower,
            "ROWS": hopper.ROWS,
        }
        name = f"hopper {'triangle' if lower else 'product'}"
        yield Spec(name, hopper.gram_hopper_kernel, types, constants, 4, 3)
    for padded, shape in ablate_hopper.SHAPES.items():
        tile = f"tensordesc<fp16[{{}}, {shape.width}],{ablate_hopper.LAYOUT!r}>"
        types = dict.fromkeys(("dz", "dout"), tile.format(64)) | dict.fromkeys(
            ("dhigh", "dlow"), tile.format(padded)
        )
        types = {name: types[name] for name in ("dz", "dhigh", "dlow", "dout")}
        types |= {"rows": "i32", "d": "i32", "scale": "fp32"}
        for low in (True, False):
            name = f"hopper ablate {padded} {'high and low' if low else 'high'}"
            constants = ablate_hopper.constants(shape, padded, low=low)
            yield Spec(name, ablate_hopper.ablate_hopper_kernel, types, constants, 4, 3)


def _newest(table: Mapping[int, Config], cc: int) -> Config:
    return table[max(k for k in table if k <= cc)]


def _spec(
    name: str, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], config: Config
) -> Spec:
    return Spec(name, kernel, types, {**constants, **config.blocks}, config.warps, config.stages)


def compile_ahead(spec: Spec, cc: int) -> Any:
    """The kernel compiled for `cc`: `.asm["ptx"]`, `.metadata.shared` in bytes; arguments aligned to 16."""
    signature = {**spec.types, **dict.fromkeys(spec.constants, "constexpr")}
    order = list(signature)
    aligned = (
        "d",
        "columns",
        "stride",
        "stride_x",
        "stride_out",
        "stride_a",
        "stride_b",
        "stride_b",
        "stride_t",
        "ld",
        "stride_gate",
        "stride_up",
        "stride_grad",
        "half",
        *(f"{x}_{axis}" for x in ("q", "k", "to_q", "to_k") for axis in "bht"),
        "angle_b",
        "angle_t",
    )
    hints = {
        (order.index(name),): ALIGNED
        for name, kind in spec.types.items()
        if (kind.startswith("*") and name != "mask") or name in aligned
    }
    source: Any = ASTSource
    if spec.gluon:
        from triton.experimental.gluon._runtime import GluonASTSource

        source = GluonASTSource
    options = {"num_warps": spec.warps, "num_stages": spec.stages}
    return triton.compile(
        source(spec.kernel, signature, dict(spec.constants), hints),
        target=GPUTarget("cuda", cc, 32),
        options=options,
    )
