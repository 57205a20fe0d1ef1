"""`swiglu` and `rotary` on the host against the oracle and against torch's own formula, and what they refuse."""

import pytest
import torch

from modegap import kernels
from modegap.kernels.rotary import reference as rotary_oracle
from modegap.kernels.swiglu import reference as swiglu_oracle

# torch rounds every operation: so many unit roundoffs of the terms may add up
ROUNDINGS = 4
HALVES = [torch.float16, torch.bfloat16, torch.float32]


def randn(*shape, seed, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(call, *inputs):
    asking = [x.clone().requires_grad_() for x in inputs]
    found = call(*asking)
    found = found if isinstance(found, tuple) else (found,)
    grads = [randn(*x.shape, seed=9 + i, dtype=torch.float64) for i, x in enumerate(found)]
    torch.autograd.backward(found, [g.to(x.dtype) for x, g in zip(found, grads, strict=True)])
    return [x.grad for x in asking]


@pytest.mark.parametrize("dtype", HALVES)
def test_swiglu(dtype):
    gate, up = (randn(3, 5, 17, seed=seed, dtype=dtype) * 4 for seed in (1, 2))
    got, want = kernels.swiglu(gate, up), swiglu_oracle.swiglu(gate.double(), up.double())
    assert kernels.last_path("swiglu").name == "cpu"
    room = ROUNDINGS * torch.finfo(dtype).eps
    assert got.dtype is dtype
    assert ((got.double() - want).abs() <= room * want.abs() + 1e-7).all()
    for ours, exact in zip(
        gradients(kernels.swiglu, gate, up),
        gradients(swiglu_oracle.swiglu, gate.double(), up.double()),
        strict=True,
    ):
        assert ((ours.double() - exact).abs() <= room * (1 + exact.abs()) * up.double().abs().amax()).all()


def test_silu_of_large_values():
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0])
    assert kernels.swiglu(gate, torch.ones(4)).tolist() == [0.0, 0.0, 0.0, 200.0]
    torch.testing.assert_close(swiglu_oracle.swiglu(gate, torch.ones(4)), kernels.swiglu(gate, torch.ones(4)))


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary(dtype):
    q, k = (randn(2, 7, h, 6, seed=h, dtype=dtype).transpose(1, 2) for h in (4, 2))
    angles = randn(1, 7, 6, seed=3, dtype=torch.float64)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    got = kernels.rotary(q, k, cos, sin)
    want = rotary_oracle.rotary(q.double(), k.double(), cos, sin)
    assert kernels.last_path("rotary").name == "cpu"
    room = ROUNDINGS * torch.finfo(dtype).eps
    for ours, exact, x in zip(got, want, (q, k), strict=True):
        assert ours.dtype is dtype
        assert ours.stride() == x.stride()
        assert ((ours.double() - exact).abs() <= room * (1 + x.double().abs().amax())).all()
    mine = gradients(lambda q, k: kernels.rotary(q, k, cos, sin), q, k)
    theirs = gradients(lambda q, k: rotary_oracle.rotary(q, k, cos, sin), q.double(), k.double())
    for ours, exact in zip(mine, theirs, strict=True):
        assert ((ours.double() - exact).abs() <= room * (1 + exact.abs().amax())).all()


def test_rotary_turns_pairs_by_the_angle():
    angle = torch.tensor([0.3, -2.0])
    cos, sin = (torch.cat([f(angle), f(angle)])[None, None] for f in (torch.cos, torch.sin))
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    q, k = kernels.rotary(x, x, cos, sin)
    want = torch.tensor([angle[0].cos(), -angle[1].sin(), angle[0].sin(), angle[1].cos()])
    torch.testing.assert_close(q.flatten(), want)
    assert torch.equal(q, k)


def test_the_oracle_can_be_forced(monkeypatch):
    monkeypatch.setenv("MODEGAP_KERNELS", "reference")
    gate = randn(3, 4, seed=1, dtype=torch.float16)
    assert torch.equal(kernels.swiglu(gate, gate), swiglu_oracle.swiglu(gate, gate))
    assert kernels.last_path("swiglu").name == "reference"
    q, angle = randn(1, 2, 3, 4, seed=2, dtype=torch.float16), randn(1, 3, 4, seed=3, dtype=torch.float16)
    assert torch.equal(kernels.rotary(q, q, angle, angle)[0], rotary_oracle.rotary(q, q, angle, angle)[0])
    assert kernels.last_path("rotary").name == "reference"


def test_what_does_not_go_together():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"up: got torch\.float32 \(2, 3\), expected gate's"):
        kernels.swiglu(x, x[:, :3])
    with pytest.raises(ValueError, match=r"expected gate's torch\.float32"):
        kernels.swiglu(x, x.half())
    with pytest.raises(ValueError, match=r"gate: got torch\.int64"):
        kernels.swiglu(x.long(), x.long())
    q, angle = torch.zeros(2, 3, 5, 4), torch.zeros(1, 5, 4)
    with pytest.raises(ValueError, match="even D"):
        kernels.rotary(q[..., :3], q[..., :3], angle, angle)
    with pytest.raises(ValueError, match=r"k: got shape \(2, 3, 4, 4\)"):
        kernels.rotary(q, q[:, :, :4], angle, angle)
    with pytest.raises(ValueError, match=r"sin: got shape \(3, 5, 4\), expected \(2, 5, 4\) or \(1, 5, 4\)"):
        kernels.rotary(q, q, angle, angle.expand(3, -1, -1))
