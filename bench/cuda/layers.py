"""Element-wise parts of a decoder layer on a GPU: SwiGLU and rotary embedding, forward and with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench import peers
from bench.harness import Case
from modegap.kernels import rotary, swiglu
from modegap.kernels.rotary import reference as rotary_oracle
from modegap.kernels.rotary.cpu import turned
from modegap.kernels.swiglu import reference as swiglu_oracle

from .data import relative

BATCH, POSITIONS, HEAD = 8, 604, 128
TOLERANCE = 6e-3
"""Relative norm: bf16 keeps 8 bits, and torch rounds every operation."""

Layer = Callable[..., Any]
Inputs = Sequence[tuple[tuple[torch.Tensor, ...], ...]]
"""Operands and gradients of the results, several times."""


def layer_cases(d: int) -> Iterator[Case]:
    """At width d: an MLP of 2.6875 d (11,008 at 4,096), heads of 128, as many for keys as for queries."""
    inner, heads = 43 * d // 16, d // HEAD
    pairs = [tuple(_randn(BATCH, POSITIONS, inner) for _ in range(3)) for _ in range(2)]
    others, missing = peers.swiglu()
    yield from _both(
        "SwiGLU",
        d,
        {
            "modegap": swiglu,
            "torch": _plain_swiglu,
            "torch.compile": torch.compile(_plain_swiglu),
            **others,
        },
        [(pair[:2], pair[2:]) for pair in pairs],
        swiglu_oracle.swiglu,
        2.0 * BATCH * POSITIONS * inner,
        (3, 5),
        missing,
    )
    angle = torch.arange(POSITIONS, device="cuda")[:, None] * 1e4 ** -torch.linspace(
        0, 1, HEAD // 2, device="cuda"
    )
    angles = [f(torch.cat([angle, angle], -1))[None].bfloat16() for f in (torch.cos, torch.sin)]
    quads = [tuple(_randn(BATCH, POSITIONS, heads, HEAD).transpose(1, 2) for _ in range(4)) for _ in range(2)]
    others, missing = peers.rotary()

    def at(call: Layer) -> Layer:
        return lambda q, k: call(q, k, *(x.to(q.dtype) for x in angles))

    yield from _both(
        "rotary embedding",
        d,
        {
            "modegap": at(rotary),
            "torch": at(_plain_rotary),
            "torch.compile": at(torch.compile(_plain_rotary)),
            **{name: at(call) for name, call in others.items()},
        },
        [(quad[:2], quad[2:]) for quad in quads],
        at(rotary_oracle.rotary),
        2.0 * BATCH * POSITIONS * d,
        (4, 4),
        missing,
    )


def _randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _plain_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def _plain_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return turned(q, cos, sin), turned(k, cos, sin)


def _both(
    name: str,
    d: int,
    calls: dict[str, Layer],
    inputs: Inputs,
    oracle: Layer,
    nbytes: float,
    passes: tuple[int, int],
    missing: dict[str, str],
) -> Iterator[Case]:
    """The forward, and forward with backward; `passes` tensors of `nbytes` are read or written in each."""
    first, grads = inputs[0]
    exact, exact_grads = _graded(oracle, [x.double() for x in first], [g.double() for g in grads])
    own = {who: _copied(inputs) if who == peers.LIGER else inputs for who in calls}
    yield Case(
        name,
        d,
        {who: [lambda c=call, x=x: c(*x) for x, _ in own[who]] for who, call in calls.items()},
        lambda got: _distance(got, exact),
        TOLERANCE,
        bytes=passes[0] * nbytes,
        repeats=25,
        missing=missing,
    )
    own = {who: _copied(inputs) if who == peers.LIGER else inputs for who in calls}
    if name == "SwiGLU" and peers.LIGER in own:
        del own[peers.LIGER]
        missing = {peers.LIGER: "its backward leaves gradients in its operands: cannot be run again on them"}
    yield Case(
        f"{name}, forward and backward",
        d,
        {
            who: [lambda c=calls[who], x=x, g=g: _graded(c, x, g)[1] for x, g in mine]
            for who, mine in own.items()
        },
        lambda got: _distance(got, exact_grads),
        TOLERANCE,
        bytes=sum(passes) * nbytes,
        repeats=25,
        missing=missing,
    )


def _copied(inputs: Inputs) -> Inputs:
    """Operands of its own for a peer that writes over them; a rotation leaves values of the same size there."""
    return [tuple(tuple(x.clone() for x in part) for part in pair) for pair in inputs]


def _graded(
    call: Layer, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    asking = [x.detach().requires_grad_() for x in inputs]
    found = call(*asking)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(x.detach() for x in found), torch.autograd.grad(found, asking, list(grads))


def _distance(got: Any, want: Sequence[torch.Tensor]) -> float:
    found = got if isinstance(got, tuple) else (got,)
    return max(relative(x, y) for x, y in zip(found, want, strict=True))
