"""z' = z - U U' z for Hopper, warp-specialised: three warps copy by TMA, one or two groups of warps multiply.

A program owns 64 rows (128 with two groups) and passes over their columns by chunks: c = z U, then, from the
last chunk back, z - c U', written into the chunk's own buffer and from there to memory. The chunks read last
are in L2 still; the first ones stay in shared memory and come last. Bytes: z once and what L2 no longer holds
once more, z' once, U's parts from L2 twice a program's rows. Flops: 10 n d K (three products in the second
pass for the two parts of c and U), 6 n d K where U has one part.

Profile on one H100, 16,384 x 4096 fp16, high and low parts (the floor reads 134 MB and writes 134 MB):

| K | time, us | read, MB | written, MB | tensor pipes active |
|---|---|---|---|---|
| 16 | 132 | 198 | 128 | 9% |
| 64 | 148 | 251 | 130 | 36% |
| 128 | 163 | 250 | 131 | 67% |
| 256 | 235 | 252 | 134 | 90% |

No spills, one program a multiprocessor. At K = 16 neither more kept rows (224 MB read without) nor deeper
rings nor more stores under way gained over 3%.

Written in Gluon, which Triton calls experimental: 3.6 and 3.9 were tried. triton.py falls back to the
portable kernel where the import fails.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .._triton.config import multiprocessors

LAYOUT = gl.NVMMASharedLayout(128, 16, 2)

_copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


@gluon.jit
def _load_kept(dz, zbuf, full, empty, rows, d, GROUPS: gl.constexpr, BC: gl.constexpr, KEPT: gl.constexpr):
    """The first chunks of each tile, once."""
    kept = gl.minimum((d + BC - 1) // BC, KEPT)
    for tile in range(gl.program_id(0), (rows + 64 * GROUPS - 1) // (64 * GROUPS), gl.num_programs(0)):
        turn = (tile - gl.program_id(0)) // gl.num_programs(0)
        for i in range(kept):
            mbarrier.wait(empty.index(i), (turn & 1) ^ 1)
            mbarrier.expect(full.index(i), 64 * GROUPS * BC * 2)
            for group in gl.static_range(GROUPS):
                row = (tile * GROUPS + group) * 64
                _copy_in(dz, [row, i * BC], full.index(i), zbuf.index(GROUPS * i + group))


@gluon.jit
def _load_ring(
    dz,
    zbuf,
    full,
    empty,
    rows,
    d,
    GROUPS: gl.constexpr,
    BC: gl.constexpr,
    KEPT: gl.constexpr,
    RING: gl.constexpr,
):
    """The other chunks, upwards and then downwards."""
    rest = gl.maximum((d + BC - 1) // BC - KEPT, 0)
    it = 0
    for tile in range(gl.program_id(0), (rows + 64 * GROUPS - 1) // (64 * GROUPS), gl.num_programs(0)):
        for i in range(2 * rest):
            s = KEPT + it % RING
            j = (KEPT + gl.where(i < rest, i, 2 * rest - 1 - i)) * BC
            mbarrier.wait(empty.index(s), ((it // RING) & 1) ^ 1)
            mbarrier.expect(full.index(s), 64 * GROUPS * BC * 2)
            for group in gl.static_range(GROUPS):
                row = (tile * GROUPS + group) * 64
                _copy_in(dz, [row, j], full.index(s), zbuf.index(GROUPS * s + group))
            it += 1


@gluon.jit
def _load_basis(
    dhigh,
    dlow,
    ubuf,
    full,
    empty,
    rows,
    d,
    KP: gl.constexpr,
    LOW: gl.constexpr,
    GROUPS: gl.constexpr,
    BC: gl.constexpr,
    KEPT: gl.constexpr,
    BASIS: gl.constexpr,
):
    """U\'s parts for the chunks in the order in which the multiplying groups take them."""
    chunks = (d + BC - 1) // BC
    rest = gl.maximum(chunks - KEPT, 0)
    PARTS: gl.constexpr = 2 if LOW else 1
    it = 0
    for _tile in range(gl.program_id(0), (rows + 64 * GROUPS - 1) // (64 * GROUPS), gl.num_programs(0)):
        for i in range(2 * chunks):
            s = it % BASIS
            back = i - chunks
            j = gl.where(back < 0, i, gl.where(back < rest, chunks - 1 - back, back - rest)) * BC
            mbarrier.wait(empty.index(s), ((it // BASIS) & 1) ^ 1)
            mbarrier.expect(full.index(s), PARTS * KP * BC * 2)
            if LOW:
                _copy_in(dlow, [0, j], full.index(s), ubuf.index(PARTS * s + 1))
            _copy_in(dhigh, [0, j], full.index(s), ubuf.index(PARTS * s))
            it += 1


@gluon.jit
def _multiply(
    dout,
    zbuf,
    ubuf,
    zfull,
    zempty,
    ufull,
    uempty,
    rows,
    d,
    scale,
    GROUP: gl.constexpr,
    KP: gl.constexpr,
    LOW: gl.constexpr,
    GROUPS: gl.constexpr,
    BC: gl.constexpr,
    KEPT: gl.constexpr,
    RING: gl.constexpr,
    BASIS: gl.constexpr,
    STORES: gl.constexpr,
):
    """One group of warps: 64 rows of each tile."""
    C: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KP, 16]
    )
    L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BC, 16]
    )
    A: gl.constexpr = gl.DotOperandLayout(0, L, 2)
    PARTS: gl.constexpr = 2 if LOW else 1
    zero = gl.zeros([64, BC], gl.float32, L)
    chunks = (d + BC - 1) // BC
    kept = gl.minimum(chunks, KEPT)
    it = 0
    ring = 0
    for tile in range(gl.program_id(0), (rows + 64 * GROUPS - 1) // (64 * GROUPS), gl.num_programs(0)):
        turn = (tile - gl.program_id(0)) // gl.num_programs(0)
        row = (tile * GROUPS + GROUP) * 64
        c = gl.zeros([64, KP], gl.float32, C)
        for i in range(chunks):
            s = it % BASIS
            here = i < kept
            slot = gl.where(here, i, KEPT + ring % RING)
            z = zbuf.index(GROUPS * slot + GROUP)
            mbarrier.wait(ufull.index(s), (it // BASIS) & 1)
            mbarrier.wait(zfull.index(slot), gl.where(here, turn, ring // RING) & 1)
            c = warpgroup_mma(z, ubuf.index(PARTS * s).permute((1, 0)), c, is_async=True)
            if LOW:
                c = warpgroup_mma(z, ubuf.index(PARTS * s + 1).permute((1, 0)), c, is_async=True)
            c = warpgroup_mma_wait(0, deps=[c])
            mbarrier.arrive(uempty.index(s), count=1)
            mbarrier.arrive(zempty.index(slot), count=1, pred=i >= kept)
            it += 1
            ring += gl.where(here, 0, 1)
        largest = gl.maximum(gl.max(gl.abs(c), axis=1), 1e-30)
        unit = gl.exp2(gl.floor(gl.log2(largest)))
        c = c / gl.expand_dims(unit, 1)
        main = c.to(zbuf.dtype)
        rest = gl.convert_layout((c - main.to(gl.float32)).to(zbuf.dtype), A)
        main = gl.convert_layout(main, A)
        back = gl.expand_dims(gl.convert_layout(unit, gl.SliceLayout(1, L)) / (scale * scale), 1)
        one = 0
        two = 0
        three = 0
        for i in range(chunks):
            s = it % BASIS
            here = i >= chunks - kept
            slot = gl.where(here, i - (chunks - kept), KEPT + ring % RING)
            j = gl.where(here, slot, chunks - 1 - i)
            z = zbuf.index(GROUPS * slot + GROUP)
            mbarrier.wait(ufull.index(s), (it // BASIS) & 1)
            part = warpgroup_mma(main, ubuf.index(PARTS * s), zero, use_acc=False, is_async=True)
            part = warpgroup_mma(rest, ubuf.index(PARTS * s), part, is_async=True)
            if LOW:
                part = warpgroup_mma(main, ubuf.index(PARTS * s + 1), part, is_async=True)
            mbarrier.wait(zfull.index(slot), gl.where(here, turn, ring // RING) & 1)
            t = z.load(L).to(gl.float32)
            part = warpgroup_mma_wait(0, deps=[part])
            mbarrier.arrive(uempty.index(s), count=1)
            z.store((t - part * back).to(zbuf.dtype))
            fence_async_shared()
            _copy_out(dout, [row, j * BC], z)
            # A buffer is free again once its store has read it; STORES of them may still be at it.
            tma.store_wait(STORES)
            free = one if STORES == 1 else (two if STORES == 2 else three)
            mbarrier.arrive(zempty.index(free), count=1, pred=i >= STORES)
            three = two
            two = one
            one = slot
            it += 1
            ring += gl.where(here, 0, 1)
        tma.store_wait(0)
        mbarrier.arrive(zempty.index(one), count=1)
        if STORES > 1:
            mbarrier.arrive(zempty.index(two), count=1, pred=chunks > 1)
        if STORES > 2:
            mbarrier.arrive(zempty.index(three), count=1, pred=chunks > 2)


@gluon.jit
def ablate_hopper_kernel(
    dz,
    dhigh,
    dlow,
    dout,
    rows,
    d,
    scale,
    KP: gl.constexpr,
    LOW: gl.constexpr,
    GROUPS: gl.constexpr,
    BC: gl.constexpr,
    KEPT: gl.constexpr,
    RING: gl.constexpr,
    BASIS: gl.constexpr,
    STORES: gl.constexpr,
):
    """Programs take tiles of 64 * GROUPS rows in turn, all of d."""
    PARTS: gl.constexpr = 2 if LOW else 1
    zbuf = gl.allocate_shared_memory(dz.dtype, [GROUPS * (KEPT + RING), 64, BC], dz.layout)
    ubuf = gl.allocate_shared_memory(dz.dtype, [PARTS * BASIS, KP, BC], dhigh.layout)
    zfull = gl.allocate_shared_memory(gl.int64, [KEPT + RING, 1], mbarrier.MBarrierLayout())
    zempty = gl.allocate_shared_memory(gl.int64, [KEPT + RING, 1], mbarrier.MBarrierLayout())
    ufull = gl.allocate_shared_memory(gl.int64, [BASIS, 1], mbarrier.MBarrierLayout())
    uempty = gl.allocate_shared_memory(gl.int64, [BASIS, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(KEPT + RING):
        mbarrier.init(zfull.index(s), count=1)
        mbarrier.init(zempty.index(s), count=GROUPS)
    for s in gl.static_range(BASIS):
        mbarrier.init(ufull.index(s), count=1)
        mbarrier.init(uempty.index(s), count=GROUPS)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (
                    _multiply,
                    (
                        dout,
                        zbuf,
                        ubuf,
                        zfull,
                        zempty,
                        ufull,
                        uempty,
                        rows,
                        d,
                        scale,
                        0,
                        KP,
                        LOW,
                        GROUPS,
                        BC,
                        KEPT,
                        RING,
                        BASIS,
                        STORES,
                    ),
                ),
                (
                    _multiply,
                    (
                        dout,
                        zbuf,
                        ubuf,
                        zfull,
                        zempty,
                        ufull,
                        uempty,
                        rows,
                        d,
                        scale,
                        1,
                        KP,
                        LOW,
                        GROUPS,
                        BC,
                        KEPT,
                        RING,
                        BASIS,
                        STORES,
                    ),
                ),
                (_load_kept, (dz, zbuf, zfull, zempty, rows, d, GROUPS, BC, KEPT)),
                (_load_ring, (dz, zbuf, zfull, zempty, rows, d, GROUPS, BC, KEPT, RING)),
                (_load_basis, (dhigh, dlow, ubuf, ufull, uempty, rows, d, KP, LOW, GROUPS, BC, KEPT, BASIS)),
            ],
            [4, 1, 1, 1],
            [216, 24, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (
                    _multiply,
                    (
                        dout,
                        zbuf,
                        ubuf,
                        zfull,
                        zempty,
                        ufull,
                        uempty,
                        rows,
                        d,
                        scale,
                        0,
                        KP,
                        LOW,
                        GROUPS,
                        BC,
                        KEPT,
                        RING,
                        BASIS,
                        STORES,
                    ),
                ),
                (_load_kept, (dz, zbuf, zfull, zempty, rows, d, GROUPS, BC, KEPT)),
                (_load_ring, (dz, zbuf, zfull, zempty, rows, d, GROUPS, BC, KEPT, RING)),
                (_load_basis, (dhigh, dlow, ubuf, ufull, uempty, rows, d, KP, LOW, GROUPS, BC, KEPT, BASIS)),
            ],
            [1, 1, 1],
            [24, 24, 24],
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """How shared memory is used.

    Attributes:
        width: columns of a chunk.
        groups: of four warps that multiply, 64 rows each.
        kept: chunks of the rows that stay from the first pass to the second.
        ring: chunks of the rows that pass through.
        basis: chunks of U's parts that pass through.
        stores: chunks on their way out at a time.
    """

    width: int
    groups: int
    kept: int
    ring: int
    basis: int
    stores: int


SHAPES = {
    16: Shape(width=128, groups=1, kept=8, ring=4, basis=3, stores=1),
    32: Shape(width=128, groups=1, kept=3, ring=6, basis=4, stores=2),
    64: Shape(width=64, groups=2, kept=1, ring=7, basis=6, stores=2),
    128: Shape(width=64, groups=2, kept=1, ring=5, basis=4, stores=2),
    256: Shape(width=64, groups=2, kept=2, ring=4, basis=2, stores=1),
}
"""By the number of directions, padded: the fastest of 28 on one H100 at d = 4096 and 8192."""


def serves(z: torch.Tensor) -> bool:
    """Whether TMA can address the rows of z and of the result: a whole number of 16 bytes a row, aligned.

    A z whose last axis is strided is copied first.
    """
    strides = z.stride()[:-1] if z.stride(-1) == 1 else ()
    return z.data_ptr() % 16 == 0 and z.shape[-1] % 8 == 0 and all(step % 8 == 0 for step in strides)


def constants(shape: Shape, padded: int, *, low: bool) -> dict[str, int]:
    """The kernel's compile-time constants."""
    return {
        "KP": padded,
        "LOW": low,
        "GROUPS": shape.groups,
        "BC": shape.width,
        "KEPT": shape.kept,
        "RING": shape.ring,
        "BASIS": shape.basis,
        "STORES": shape.stores,
    }


def launch(
    rows: torch.Tensor,
    high: torch.Tensor,
    low: torch.Tensor | None,
    scale: float,
    out: torch.Tensor,
    shape: Shape | None = None,
) -> None:
    """Ablate `rows` [n, d]; high and low are the parts of U times `scale` transposed, [padded K, d].

    Without `low`, U is what `high` holds.
    """
    KP = high.shape[0]
    shape = shape or SHAPES[KP]
    tiles = -(-len(rows) // (64 * shape.groups))
    ablate_hopper_kernel[(min(tiles, multiprocessors(rows.device)),)](
        TensorDescriptor.from_tensor(rows, [64, shape.width], LAYOUT),
        TensorDescriptor.from_tensor(high, [KP, shape.width], LAYOUT),
        TensorDescriptor.from_tensor(high if low is None else low, [KP, shape.width], LAYOUT),
        TensorDescriptor.from_tensor(out, [64, shape.width], LAYOUT),
        rows.shape[0],
        rows.shape[1],
        scale,
        num_warps=4,
        **constants(shape, KP, low=low is not None),
    )
