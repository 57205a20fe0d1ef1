"""The Triton kernels on small shapes against the fp64 oracle, without a GPU: run by Triton's interpreter.

The interpreter is chosen when Triton is imported, so the cases run in a process of their own (this file as a
script), which prints one JSON line for each. It is sequential and rounds to nearest: races and the bias of
tensor cores are for test_gpu.py, what the compiler makes of the kernels for test_triton_compile.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def poisoned(*shape, dtype):
    import torch

    return torch.full(shape, float("nan"), dtype=dtype)


def ragged_rows(n, d, dtype=None):
    import torch

    generator = torch.Generator().manual_seed(n * 1009 + d)
    x = torch.randn(n, d, generator=generator) * torch.logspace(-1, 1, d)
    return x.to(dtype or torch.float16)


def gram_case(mode, shapes):
    import torch

    from modegap.kernels.covariance.triton import covariance_update

    for n, d in shapes:
        rows = ragged_rows(n, d)
        gram = torch.tril(torch.ones(d, d, dtype=torch.float64))
        gram += torch.triu(poisoned(d, d, dtype=torch.float64), 1).nan_to_num(nan=7.0).triu(1)
        covariance_update(rows, gram, mode=mode)
        wide = rows.double()
        want = wide.T @ wide + 1.0
        scale = (want.diagonal()[:, None] * want.diagonal()).sqrt()
        assert float(((gram - want).tril().abs() / scale).max()) < 1e-6, (n, d)
        assert bool((gram.triu(1) == torch.full((d, d), 7.0, dtype=torch.float64).triu(1)).all()), (
            "wrote above"
        )


@case
def covariance_precise():
    gram_case("precise", [(0, 40), (1, 8), (130, 72), (200, 129), (257, 300)])


@case
def covariance_fast():
    gram_case("fast", [(70, 136)])


@case
def covariance_splits_rows_of_the_last_wave():
    import torch

    from modegap.kernels._triton.plan import plan

    cut = plan(200, 2304, 4, torch.device("cpu"))
    assert cut.slots > 0
    assert len(cut.folds)
    gram_case("precise", [(2304, 200)])


@case
def covariance_of_strided_rows_and_gram():
    import torch

    from modegap.kernels.covariance.triton import covariance_update

    wide = ragged_rows(90, 100)
    rows = wide[:, 10:70]
    held = poisoned(60, 80, dtype=torch.float64)
    gram = held[:, :60]
    gram.zero_()
    covariance_update(rows, gram, mode="precise")
    want = (rows.double().T @ rows.double()).tril()
    assert torch.allclose(gram.tril(), want, rtol=1e-6, atol=1e-4)
    assert bool(held[:, 60:].isnan().all())


@case
def cross():
    import torch

    from modegap.kernels.cross.triton import cross_update

    for n, p, q in [(0, 5, 5), (70, 130, 45), (130, 20, 260)]:
        a, b = ragged_rows(n, p), ragged_rows(n, q)
        out = torch.full((p, q), 2.0, dtype=torch.float64)
        cross_update(a, b, out, mode="precise")
        want = a.double().T @ b.double() + 2.0
        scale = (a.double().square().sum(0)[:, None] * b.double().square().sum(0)).sqrt().clamp_min(1.0)
        assert float(((out - want).abs() / scale).max()) < 1e-6, (n, p, q)


@case
def stage_casts_shifts_and_counts():
    import torch

    from modegap.kernels.stage.triton import stage, stage_and_sum

    for n, d in [(0, 9), (1, 3), (70, 130), (129, 257)]:
        x = (ragged_rows(n, d).float() * 0.1 + 20.0).half()
        shift = torch.full((d,), 20.0)
        shift[: d // 2] = 0.0
        out = poisoned(n + 2, d, dtype=torch.float16)
        sums, inexact = stage_and_sum(x, shift, 1.0, out)
        exact = x.double() - shift.double()
        assert torch.equal(out[:n], exact.half())
        assert bool(out[n:].isnan().all())
        assert torch.allclose(sums, out[:n].double().sum(0), rtol=1e-6, atol=1e-4)
        assert int(inexact) == int((exact.half().double() != exact).sum())
        for dtype in (torch.float32, torch.float64):
            wide = poisoned(n, d, dtype=dtype)
            stage(x, shift, 0.5, wide)
            assert torch.equal(wide, (x.double() * 0.5 - shift.double()).to(dtype))


@case
def stage_counts_roundings():
    import torch

    from modegap.kernels.stage.triton import stage_and_sum

    x = torch.tensor([[1.0009765625, 100.0], [3.0, 100.0]]).half()
    out = torch.empty_like(x)
    _, inexact = stage_and_sum(x, torch.tensor([2048.0, 100.0]), 1.0, out)
    assert int(inexact) == 1


@case
def projection_energy():
    import torch

    from modegap.kernels.projection_energy.triton import projection_energy

    for n, d, K in [(0, 8, 3), (5, 33, 1), (140, 100, 17), (130, 70, 70), (257, 64, 16)]:
        for dtype, wide, tolerance in [
            (torch.float16, torch.float64, 2e-6),
            (torch.float16, torch.float16, 2e-6),
            (torch.float32, torch.float32, 2e-6),
        ]:
            x = ragged_rows(n, d, dtype)
            U = torch.randn(d, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64).to(wide)
            out = torch.ones(K, dtype=torch.float64)
            projection_energy(x, U, out)
            want = (x.double() @ U.double()).square().sum(0) + 1.0
            assert float(((out - want).abs() / want).max()) < tolerance, (n, d, K, dtype)


@case
def ablate():
    import torch

    from modegap.kernels.ablate.triton import ablate

    for shape, K in [((0, 24), 2), ((24,), 1), ((3, 5, 70), 11), ((2, 65, 130), 40), ((9, 200), 100)]:
        d = shape[-1]
        U = torch.linalg.qr(
            torch.randn(d, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
        )[0]
        for dtype, tolerance in [(torch.float16, 2.0**-11), (torch.float32, 2e-6)]:
            z = torch.randn(shape, generator=torch.Generator().manual_seed(d)).to(dtype)
            got = ablate(z, U)
            want = z.double() - z.double() @ U @ U.T
            assert got.shape == z.shape
            assert got.dtype is dtype
            if z.numel():
                assert float((got.double() - want).abs().max()) <= tolerance * float(want.abs().max()), (
                    shape,
                    dtype,
                )


@case
def ablate_of_large_states_and_gradients():
    import torch

    from modegap.kernels.ablate.triton import ablate

    U = torch.linalg.qr(torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
        0
    ]
    z = (torch.randn(6, 64, generator=torch.Generator().manual_seed(1)) * 9000.0).half().requires_grad_()
    got = ablate(z, U)
    assert bool(got.isfinite().all())
    left = (got.detach().double() @ U).norm() / (z.detach().double() @ U).norm()
    assert float(left) < 1e-3
    got.float().sum().backward()
    ones = torch.ones(6, 64, dtype=torch.float64)
    assert torch.allclose(z.grad.double(), ones - ones @ U @ U.T, atol=2e-3)
    assert torch.equal(ablate(z.detach(), U[:, :0]), z.detach())


@case
def ablate_many_directions():
    import torch

    from modegap.kernels._triton.split import split
    from modegap.kernels.ablate.triton import _subtract

    n, d, K = 70, 190, 150
    U = torch.linalg.qr(torch.randn(d, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    z = (torch.randn(n, d, generator=torch.Generator().manual_seed(1)) * 3000.0).half()
    cut = split(U, torch.float16, 160, scale=64.0)
    c = (
        z.float() @ torch.cat([cut.high, cut.low], dim=1).float()
    )  # the library's part: no fp32-out product on the host
    out = poisoned(n, d, dtype=torch.float16)
    _subtract(z, c, cut, out)
    want = z.double() - z.double() @ U @ U.T
    assert float((out.double() - want).abs().max()) <= 2.0**-11 * float(want.abs().max())


@case
def gradient_norms():
    import torch

    from modegap.kernels.gradient_norms.triton import gradient_norms

    for lengths, d, K in [([1], 7, 2), ([3, 40, 1, 17], 130, 33), ([300, 5], 64, 0)]:
        g = ragged_rows(sum(lengths), d) * 300.0
        ends = torch.tensor([0, *lengths]).cumsum(0)
        U = torch.randn(d, K, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
        norms, projections = gradient_norms(g, ends, U if K else None)
        for b, (lo, hi) in enumerate(zip(ends.tolist(), ends.tolist()[1:], strict=False)):
            part = g[lo:hi].double()
            assert abs(float(norms[b] / part.norm()) - 1.0) < 1e-6
            if K:
                want = part.mean(0) @ U
                assert float((projections[b] - want).abs().max()) < 1e-5 * float(
                    part.mean(0).norm() * U.norm()
                )
        assert (projections is None) == (K == 0)


@case
def masked_mean():
    import torch

    from modegap.kernels.masked_mean.triton import masked_mean

    for B, T, d in [(1, 1, 3), (3, 19, 70), (2, 300, 64)]:
        x = ragged_rows(B * T, d).view(B, T, d).clone()
        mask = torch.rand(B, T, generator=torch.Generator().manual_seed(T)) < 0.6
        mask[:, 0] = True
        x[~mask] = float("nan")
        got = masked_mean(x, mask)
        for b in range(B):
            want = x[b, mask[b]].double().mean(0)
            assert torch.allclose(got[b].double(), want, rtol=1e-5, atol=1e-4)
        assert torch.allclose(masked_mean(x.transpose(1, 2).contiguous().transpose(1, 2), mask), got)


@case
def ghost_norms():
    import torch

    from modegap.kernels.ghost_norms.triton import by_entries, ghost_norms

    ways = set()
    for B, T, d, p in [(1, 1, 5, 3), (2, 70, 150, 90), (2, 130, 20, 33), (3, 40, 8, 130), (2, 90, 150, 6)]:
        for dtype in (torch.float16, torch.float32):
            a = ragged_rows(B * T, d, dtype).view(B, T, d)
            g = ragged_rows(B * T, p + 1, dtype)[:, :p].reshape(B, T, p)
            ways.add(by_entries(a, g))
            want = torch.stack([(a[b].double().T @ g[b].double()).norm() for b in range(B)])
            assert torch.allclose(ghost_norms(a, g), want, rtol=1e-4), (B, T, d, p, dtype)
    assert ways == {True, False}


def checksums_agree(blocks):
    from modegap.kernels.crc32c.triton import crc32c
    from modegap.stores.checksum import crc32c as on_the_host

    want = [on_the_host(block.contiguous().numpy().tobytes()) for block in blocks]
    assert crc32c(blocks).tolist() == want, tuple(blocks.shape)


@case
def checksum_of_any_number_of_words():
    """A word; rows of lanes that are full, one more, one less; two turns of the loop."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for words in (1, 4096, 4097, 8191, 3 * 4096):
        blocks = torch.randint(-(2**31), 2**31, (1, words), generator=generator).to(torch.int32)
        checksums_agree(blocks)
    checksums_agree(torch.zeros(1, 4100, dtype=torch.int32))
    checksums_agree(blocks[:, :6].half())


@case
def checksum_of_more_lanes():
    """512 lanes of 32 words, and 256 of 64 with three zeros in front: groups of 128 that meet in the sum."""
    import torch

    from modegap.kernels.crc32c import triton as kernel

    usual, kernel.WORDS = kernel.WORDS, 32
    blocks = torch.randint(-(2**31), 2**31, (2, 512 * 32), generator=torch.Generator().manual_seed(1))
    checksums_agree(blocks[:1].to(torch.int32))
    checksums_agree(blocks[:, 3:].to(torch.int32))
    kernel.WORDS = usual


@case
def checksum_of_one_flipped_bit():
    """In the first and last word, at both ends of a row of lanes, in the loop and in what is left of it."""
    import torch

    words = 2 * 4096 + 7
    clean = torch.randint(-(2**31), 2**31, (words,), generator=torch.Generator().manual_seed(2))
    at = (0, 6, 7, 134, 4102, 4103, words - 4096, words - 129, words - 1)
    blocks = clean.to(torch.int32).repeat(len(at), 1)
    for row, word in enumerate(at):
        blocks[row, word] ^= 1 << (row * 7 % 31)
    checksums_agree(blocks)


def of_layers(*shape, seed, dtype):
    """Values over three decades, a few of them far out."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * torch.logspace(-3, 0, shape[-1])
    x[..., -1] *= 8.0
    return x.to(dtype)


def within_rounding(got, want, dtype, room=0.0):
    """One rounding of the exact value, fp32's errors on the way there, and those of `room` (terms that cancel).

    The interpreter cuts bf16 off where a GPU rounds: a whole unit there, half of one in fp16.
    """
    import torch

    assert got.dtype is dtype
    kind = torch.finfo(dtype)
    units = 0.5 if dtype is torch.float16 else 1.0
    least = units * kind.smallest_normal * kind.eps  # the step of subnormal values
    gap = (got.double() - want).abs()
    assert bool((gap <= (units * kind.eps + 2e-6) * want.abs() + 1e-6 * room + least).all())


@case
def swiglu():
    import torch

    from modegap.kernels.swiglu import reference
    from modegap.kernels.swiglu.triton import swiglu

    for shape in [(1, 1), (3, 7), (2, 5, 1023), (1, 2050)]:
        for dtype in (torch.float16, torch.bfloat16):
            gate, up, grad = (of_layers(*shape, seed=seed, dtype=dtype) for seed in (1, 2, 3))
            gate[..., 0] = -200.0  # exp overflows
            wide = [x.double().requires_grad_() for x in (gate, up)]
            want = reference.swiglu(*wide)
            want.backward(grad.double())
            ours = [x.clone().requires_grad_() for x in (gate, up)]
            got = swiglu(*ours)
            got.backward(grad)
            within_rounding(got, want.detach(), dtype)
            assert torch.equal(swiglu(gate, up), got)  # nothing is recorded here
            within_rounding(ours[1].grad, wide[1].grad, dtype)
            # 1 + x (1 - s) crosses zero at x = -1.28
            room = (grad * up * gate).double().abs() + grad.double().abs() * up.double().abs()
            within_rounding(ours[0].grad, wide[0].grad, dtype, room)
            assert torch.equal(ours[0], gate)  # left as it was
            assert torch.equal(ours[1], up)


@case
def swiglu_of_halves_and_strided_operands():
    import torch

    from modegap.kernels.swiglu.triton import swiglu

    both = of_layers(2, 3, 70, seed=4, dtype=torch.bfloat16).requires_grad_()
    gate, up = both.chunk(2, dim=-1)
    got = swiglu(gate, up)
    assert torch.equal(got, swiglu(gate.detach().contiguous(), up.detach().contiguous()))
    got.backward(torch.ones((), dtype=torch.bfloat16).expand(got.shape))  # a gradient without strides
    apart = [x.detach().contiguous().requires_grad_() for x in (gate, up)]
    swiglu(*apart).sum().backward()
    assert torch.equal(both.grad, torch.cat([x.grad for x in apart], -1))
    across = of_layers(2, 35, 6, seed=5, dtype=torch.bfloat16).transpose(1, 2)
    assert torch.equal(swiglu(across, across), swiglu(across.contiguous(), across.contiguous()))


@case
def rotary():
    import torch

    from modegap.kernels.rotary import reference
    from modegap.kernels.rotary.triton import rotary

    for B, H, K, T, D in [(1, 1, 1, 1, 2), (2, 3, 1, 5, 6), (2, 4, 2, 3, 80), (1, 40, 5, 2, 128)]:
        for dtype in (torch.float16, torch.bfloat16):
            inputs, want_of, got_of = [], [], []
            for seed, heads in ((1, H), (2, K)):
                inputs.append(of_layers(B, T, heads, D, seed=seed, dtype=dtype).transpose(1, 2))
            grads = [of_layers(*x.shape, seed=3, dtype=dtype) for x in inputs]
            # halves that differ: not every model's do not
            cos, sin = (of_layers(1 + (B - 1) * (T % 2), T, D, seed=s, dtype=dtype) for s in (6, 7))
            for x in inputs:
                want_of.append(x.double().requires_grad_())
                got_of.append(x.clone().requires_grad_())
            want = reference.rotary(*want_of, cos, sin)
            torch.autograd.backward(want, [g.double() for g in grads])
            got = rotary(*got_of, cos, sin)
            torch.autograd.backward(got, grads)
            # the sums of the two products' magnitudes, which may cancel
            s, t = sin.double().abs().chunk(2, dim=-1)
            rooms = reference.rotary(
                *(x.double().abs() for x in inputs), cos.double().abs(), torch.cat((-s, t), -1)
            )
            back = reference.rotary(
                *(g.double().abs() for g in grads), cos.double().abs(), torch.cat((-t, s), -1)
            )
            for x, y, room in zip(got, want, rooms, strict=True):
                within_rounding(x, y.detach(), dtype, room)
            for ours, theirs, room in zip(got_of, want_of, back, strict=True):
                within_rounding(ours.grad, theirs.grad, dtype, room)
            for x, z, ours in zip(got, inputs, got_of, strict=True):
                if min(z.shape[1:3]) > 1:
                    assert x.stride() == z.stride()  # heads inside of positions, as attention wants them
                    assert ours.grad.stride() == z.stride()
            for x, y in zip(rotary(*inputs, cos, sin), got, strict=True):
                assert torch.equal(x, y)


@case
def rotary_of_strided_operands():
    import torch

    from modegap.kernels.rotary.triton import rotary

    wide = of_layers(2, 5, 3, 3 * 8, seed=8, dtype=torch.bfloat16)
    q, k = wide[..., :8].transpose(1, 2), wide[..., 8:16].transpose(1, 2)
    cos, sin = (of_layers(1, 5, 8, seed=s, dtype=torch.float32) for s in (9, 10))
    want = rotary(q.contiguous(), k.contiguous(), cos, sin)
    assert all(x.is_contiguous() for x in want)
    across = q.transpose(2, 3).contiguous().transpose(2, 3)  # its last axis is strided
    for first, angles in ((q, (cos, sin)), (across, (cos.expand(2, -1, -1), sin.expand(2, -1, -1)))):
        got = rotary(first, k, *angles)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def main() -> None:
    for name, function in CASES.items():
        try:
            function()
            print(json.dumps([name, ""]), flush=True)
        except Exception:
            print(json.dumps([name, traceback.format_exc()]), flush=True)


@cache
def outcomes() -> dict[str, str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return found or dict.fromkeys(CASES, done.stderr)


def interpreter_fails() -> str:
    """Why the installed Triton cannot interpret a loop over a run-time argument, or an empty string."""
    import numpy as np

    triton = pytest.importorskip("triton")
    versions = [tuple(map(int, v.split(".")[:2])) for v in (triton.__version__, np.__version__)]
    if versions[0] < (3, 9) and versions[1] >= (2, 4):
        return f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}"
    return ""


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    if why := interpreter_fails():
        pytest.skip(why)
    assert outcomes().get(name, "did not run") == ""


if __name__ == "__main__":
    main()
