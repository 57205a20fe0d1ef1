"""The Gram update of gram.py for Hopper, warp-specialised: one warp copies, two groups multiply.

A program owns 128 x 256 of the result. Each group of warps accumulates 64 x 256 in registers as two halves
(128 registers a thread) and promotes through one 64 x 128 chain (64 registers): eight wgmma of 16 rows,
then 64 additions. While one group adds, the other's wgmma keep the tensor cores busy; Triton's own
pipeliner drains them at every promotion, and costs 1.5 times the time. A 128 x 256 tile in two full
accumulators would need 256 registers.

Measured on an H100 (same run, cuBLAS fp16 at 43.4 and 194 ns/row): 25.4 ns/row at d = 4096, 107 at d =
8192. One wgmma over 256 columns without promotion: 25.0 and 106.

Written in Gluon, which Triton calls experimental: 3.6 and 3.9 were tried. gram.py falls back to the
portable kernel where the import fails.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .plan import MAX_ROWS, Plan

BK = 64
STAGES = 4
LAYOUT = gl.NVMMASharedLayout(128, 16, 2)

_copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def _unit(units):
    at = units + gl.program_id(0) * 6
    return gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3), gl.load(at + 4), gl.load(at + 5)


@gluon.jit
def _produce(da, db, abuf, bbuf, full, empty, units, BK: gl.constexpr, STAGES: gl.constexpr):
    panel, first, second, start, stop, _slot = _unit(units)
    second = gl.where(second < 0, first, second)
    for it in range((stop - start + 2 * BK - 1) // (2 * BK) * 2):
        s = it % STAGES
        k = start + it * BK
        mbarrier.wait(empty.index(s), ((it // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(s), 384 * BK * 2)
        for half in gl.static_range(2):
            _copy_in(da, [k, panel * 128 + 64 * half], full.index(s), abuf.index(2 * s + half))
        _copy_in(db, [k, first * 128], full.index(s), bbuf.index(2 * s))
        _copy_in(db, [k, second * 128], full.index(s), bbuf.index(2 * s + 1))


@gluon.jit
def _flush(
    out,
    work,
    ld,
    p,
    q,
    panel,
    block,
    slot,
    acc,
    HALF: gl.constexpr,
    SIDE: gl.constexpr,
    LOWER: gl.constexpr,
    L: gl.constexpr,
):
    i = 64 * HALF + gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    j = gl.arange(0, 128, gl.SliceLayout(0, L))[None, :]
    if slot >= 0:
        gl.store(work + slot.to(gl.int64) * 32768 + i * 256 + (j + 128 * SIDE), acc)
    elif block >= 0:
        r = panel * 128 + i
        c = block * 128 + j
        if LOWER and block > panel:
            at = out + c.to(gl.int64) * ld + r
            keep = (c < q) & (r < p)
            gl.store(at, gl.load(at, mask=keep, other=0.0) + acc.to(gl.float64), mask=keep)
        else:
            at = out + r.to(gl.int64) * ld + c
            keep = (r < p) & (c < q)
            if LOWER:
                keep = keep & (c <= r)
            gl.store(at, gl.load(at, mask=keep, other=0.0) + acc.to(gl.float64), mask=keep)


@gluon.jit
def _consume(
    abuf,
    bbuf,
    full,
    empty,
    out,
    work,
    units,
    ld,
    p,
    q,
    HALF: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    FLUSH: gl.constexpr,
    LOWER: gl.constexpr,
):
    L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]
    )
    panel, first, second, start, stop, slot = _unit(units)
    zero = gl.zeros([64, 128], gl.float32, L)
    it = 0
    for segment in range(start, stop, FLUSH):
        end = gl.minimum(segment + FLUSH, stop)
        left = gl.zeros([64, 128], gl.float32, L)
        right = gl.zeros([64, 128], gl.float32, L)
        for _k in range(segment, end, 2 * BK):
            s = it % STAGES
            t = (it + 1) % STAGES
            x = abuf.index(2 * s + HALF).permute((1, 0))
            y = abuf.index(2 * t + HALF).permute((1, 0))
            mbarrier.wait(full.index(s), (it // STAGES) & 1)
            part = warpgroup_mma(x, bbuf.index(2 * s), zero, use_acc=False, is_async=True)
            mbarrier.wait(full.index(t), ((it + 1) // STAGES) & 1)
            part = warpgroup_mma(y, bbuf.index(2 * t), part, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            left += part
            part = warpgroup_mma(x, bbuf.index(2 * s + 1), zero, use_acc=False, is_async=True)
            part = warpgroup_mma(y, bbuf.index(2 * t + 1), part, is_async=True)
            part = warpgroup_mma_wait(0, deps=[part])
            mbarrier.arrive(empty.index(s), count=1)
            mbarrier.arrive(empty.index(t), count=1)
            right += part
            it += 2
        _flush(out, work, ld, p, q, panel, first, slot, left, HALF, 0, LOWER, L)
        _flush(out, work, ld, p, q, panel, second, slot, right, HALF, 1, LOWER, L)


@gluon.jit
def gram_hopper_kernel(
    da,
    db,
    out,
    work,
    units,
    ld,
    p,
    q,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    FLUSH: gl.constexpr,
    LOWER: gl.constexpr,
):
    """One unit of the plan. Rows past the end of a range of rows do not exist: TMA fills them with zeros.

    Ranges begin at multiples of 128 rows and only the last range of all ends elsewhere, at the tensor's end.
    """
    abuf = gl.allocate_shared_memory(da.dtype, [2 * STAGES, BK, 64], da.layout)
    bbuf = gl.allocate_shared_memory(db.dtype, [2 * STAGES, BK, 128], db.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    gl.warp_specialize(
        [
            (_consume, (abuf, bbuf, full, empty, out, work, units, ld, p, q, 0, BK, STAGES, FLUSH, LOWER)),
            (_consume, (abuf, bbuf, full, empty, out, work, units, ld, p, q, 1, BK, STAGES, FLUSH, LOWER)),
            (_produce, (da, db, abuf, bbuf, full, empty, units, BK, STAGES)),
        ],
        [4, 1],
        [216, 24],
    )


def launch(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, work: torch.Tensor, cut: Plan, *, lower: bool
) -> None:
    """Run the units of `cut`; a and b with contiguous rows, 16-byte aligned."""
    gram_hopper_kernel[(len(cut.units),)](
        TensorDescriptor.from_tensor(a, [BK, 64], LAYOUT),
        TensorDescriptor.from_tensor(b, [BK, 128], LAYOUT),
        out,
        work,
        cut.units,
        out.stride(0),
        a.shape[1],
        b.shape[1],
        BK=BK,
        STAGES=STAGES,
        FLUSH=MAX_ROWS,
        LOWER=lower,
        num_warps=4,
    )
