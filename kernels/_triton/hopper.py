"""The Gram update of gram.py for Hopper, warp-specialised: one warp copies, two groups multiply, one settles.

A program is persistent and takes units of 128 x 256 of the result. Each multiplying group of warps accumulates
64 x 256 in registers as two halves (128 registers a thread) and promotes through one 64 x 128 chain (64
registers): eight wgmma of 16 rows, then 64 additions. While one group adds, the other's wgmma keep the tensor
cores busy; Triton's own pipeliner drains them at every promotion, and costs 1.5 times the time. A 128 x 256
tile in two full accumulators would need 256 registers.

Every 32,768 rows the groups leave their fp32 sums in a buffer that L2 holds (128 KiB a program) and go on;
the settling group adds them to the fp64 master meanwhile. With the master in the hands of the multiplying
groups, which then wait for memory, the triangle took 6% longer at d = 4096 and 7% at 8192.

Measured on an H100 (same run, cuBLAS fp16 at 42.0 and 184 ns/row): 23.4 ns/row at d = 4096, 95.7 at 8192.
Profile at d = 4096: tensor pipes 93% active, 1.1 GB read and 0.2 GB written, no spills where it multiplies.
The clock is at the power limit (1.50 GHz), as it is in the library's product.

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

ROWS = 4
"""Rows of the tile that are added to the master at a time."""

_copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier


@gluon.jit
def _unit(queue, k):
    at = queue + k * 6
    return gl.load(at), gl.load(at + 1), gl.load(at + 2), gl.load(at + 3), gl.load(at + 4), gl.load(at + 5)


@gluon.jit
def _mine(heads):
    return gl.load(heads + gl.program_id(0)), gl.load(heads + gl.program_id(0) + 1)


@gluon.jit
def _produce(da, db, abuf, bbuf, full, empty, queue, heads, BK: gl.constexpr, STAGES: gl.constexpr):
    head, tail = _mine(heads)
    it = 0
    for n in range(head, tail):
        panel, first, second, start, stop, _slot = _unit(queue, n)
        second = gl.where(second < 0, first, second)
        for k in range(start, start + (stop - start + 2 * BK - 1) // (2 * BK) * (2 * BK), BK):
            s = it % STAGES
            mbarrier.wait(empty.index(s), ((it // STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(s), 384 * BK * 2)
            for half in gl.static_range(2):
                _copy_in(da, [k, panel * 128 + 64 * half], full.index(s), abuf.index(2 * s + half))
            _copy_in(db, [k, first * 128], full.index(s), bbuf.index(2 * s))
            _copy_in(db, [k, second * 128], full.index(s), bbuf.index(2 * s + 1))
            it += 1


@gluon.jit
def _consume(
    abuf,
    bbuf,
    full,
    empty,
    ready,
    taken,
    work,
    queue,
    heads,
    slots,
    HALF: gl.constexpr,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    FLUSH: gl.constexpr,
):
    L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16]
    )
    i = 64 * HALF + gl.arange(0, 64, gl.SliceLayout(1, L))[:, None]
    j = gl.arange(0, 128, gl.SliceLayout(0, L))[None, :]
    zero = gl.zeros([64, 128], gl.float32, L)
    head, tail = _mine(heads)
    it = 0
    handed = 0
    for n in range(head, tail):
        _panel, _first, _second, start, stop, slot = _unit(queue, n)
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
            whole = slot < 0
            mbarrier.wait(taken.index(0), (handed & 1) ^ 1, pred=whole)
            at = work + gl.where(whole, slots + gl.program_id(0), slot).to(gl.int64) * 32768 + i * 256 + j
            gl.store(at, left)
            gl.store(at + 128, right)
            _barrier()
            mbarrier.arrive(ready.index(0), count=1, pred=whole)
            handed += gl.where(whole, 1, 0)


@gluon.jit
def _settle(
    out,
    work,
    queue,
    heads,
    ready,
    taken,
    slots,
    ld,
    p,
    q,
    FLUSH: gl.constexpr,
    LOWER: gl.constexpr,
    ROWS: gl.constexpr,
):
    """Adds what the groups hand over to the fp64 master while they go on."""
    W: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [1, 4], [1, 0])
    i = gl.arange(0, ROWS, gl.SliceLayout(1, W))[:, None]
    j = gl.arange(0, 256, gl.SliceLayout(0, W))[None, :]
    source = work + (slots + gl.program_id(0)).to(gl.int64) * 32768 + i * 256 + j
    head, tail = _mine(heads)
    taking = 0
    for n in range(head, tail):
        panel, first, second, start, stop, slot = _unit(queue, n)
        if slot < 0:
            block = gl.where(j < 128, first, second)
            column = block * 128 + j % 128
            for _segment in range(start, stop, FLUSH):
                mbarrier.wait(ready.index(0), taking & 1)
                for r in range(0, 128, ROWS):
                    row = panel * 128 + r + i
                    part = gl.load(source + r * 256, cache_modifier=".cg").to(gl.float64)
                    keep = (row < p) & (column < q) & (block >= 0)
                    if LOWER:
                        flip = block > panel
                        keep = keep & (flip | (column <= row))
                        at = out + gl.where(flip, column, row).to(gl.int64) * ld + gl.where(flip, row, column)
                    else:
                        at = out + row.to(gl.int64) * ld + column
                    gl.store(at, gl.load(at, mask=keep, other=0.0) + part, mask=keep)
                _barrier()
                mbarrier.arrive(taken.index(0), count=1)
                taking += 1


@gluon.jit
def gram_hopper_kernel(
    da,
    db,
    out,
    work,
    queue,
    heads,
    slots,
    ld,
    p,
    q,
    BK: gl.constexpr,
    STAGES: gl.constexpr,
    FLUSH: gl.constexpr,
    LOWER: gl.constexpr,
    ROWS: gl.constexpr,
):
    """One program's part of the queue. Rows past the tensor's end do not exist: TMA fills them with zeros.

    Ranges begin at multiples of 128 rows and only the last range of all ends elsewhere, at the tensor's end.
    """
    abuf = gl.allocate_shared_memory(da.dtype, [2 * STAGES, BK, 64], da.layout)
    bbuf = gl.allocate_shared_memory(db.dtype, [2 * STAGES, BK, 128], db.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    mbarrier.init(ready.index(0), count=2)
    mbarrier.init(taken.index(0), count=1)
    gl.warp_specialize(
        [
            (
                _consume,
                (abuf, bbuf, full, empty, ready, taken, work, queue, heads, slots, 0, BK, STAGES, FLUSH),
            ),
            (
                _consume,
                (abuf, bbuf, full, empty, ready, taken, work, queue, heads, slots, 1, BK, STAGES, FLUSH),
            ),
            (_settle, (out, work, queue, heads, ready, taken, slots, ld, p, q, FLUSH, LOWER, ROWS)),
            (_produce, (da, db, abuf, bbuf, full, empty, queue, heads, BK, STAGES)),
        ],
        [4, 4, 1],
        [208, 72, 24],
    )


def launch(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, work: torch.Tensor, cut: Plan, *, lower: bool
) -> None:
    """Run the queue of `cut`; a and b with contiguous rows, 16-byte aligned; `work` as `workspace` says."""
    gram_hopper_kernel[(len(cut.heads) - 1,)](
        TensorDescriptor.from_tensor(a, [BK, 64], LAYOUT),
        TensorDescriptor.from_tensor(b, [BK, 128], LAYOUT),
        out,
        work,
        cut.queue,
        cut.heads,
        cut.slots,
        out.stride(0),
        a.shape[1],
        b.shape[1],
        BK=BK,
        STAGES=STAGES,
        FLUSH=MAX_ROWS,
        LOWER=lower,
        ROWS=ROWS,
        num_warps=4,
    )
