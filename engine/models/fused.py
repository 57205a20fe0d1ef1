"""One kernel each for the parts of a decoder layer that transformers writes as many, while a block runs.

RMS norm, gated activation and rotary embedding are element-wise: their time is that of reading and writing. In one
run on one H100, forward and backward of a 7B decoder (604 positions, batches of 24) took 38.8 ms a sample and 71.5 GiB
as transformers writes it and 27.6 ms and 54.7 GiB with one kernel each; a forward with the encoder 17.3 and 13.5 ms.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from modegap.kernels import rotary, swiglu

# Largest difference from the module's own result that its roundings explain, in units of its dtype's precision.
_ROUNDINGS = 4
_ROTARY = "apply_rotary_pos_emb"
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")
_SPLIT, _JOINED = {"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Fused:
    """What runs fused: norms and gated MLPs that the block changed, modeling files whose rotary function it did."""

    norms: int
    mlps: int
    rotary: int


@contextmanager
def fused_layers(model: nn.Module) -> Iterator[Fused]:
    """While the block runs, element-wise parts of a half-precision CUDA model are single kernels.

    - A module whose class is called `...RMSNorm` becomes torch's `rms_norm`.
    - A module of `gate_proj`, `up_proj` (or both as `gate_up_proj`), `down_proj` and SiLU computes
      `down_proj(swiglu(gate_proj(x), up_proj(x)))`. The projections are called as modules.
    - `apply_rotary_pos_emb` of the file that defines the attention becomes `kernels.rotary`.

    Each takes part only where it gives on random input what the module's own code gives there, up to rounding:
    another formula (Gemma's 1 + weight, a clamped gate, interleaved pairs) is left as it is. Hooks of modules stay in
    force, accelerate's and peft's layers too; where an activation has hooks it is called. What a call brings that
    the kernels do not serve goes through the model's own code. Everything is put back when the block ends.

    Blocks may nest. The rotary function belongs to all models of its file: it stays replaced until the last thread
    has left its block. Blocks of several threads over one model must nest, as its norms and MLPs are its own.
    """
    with ExitStack() as stack:
        found = _Found()
        counts = {"norms": 0, "mlps": 0}
        for module in model.modules():
            for kind, one in (("norms", found.norm(module)), ("mlps", found.mlp(module))):
                if one is not None and _put(stack, module, one):
                    counts[kind] += 1
        files = [entry for entry in _rotary_files(model) if _turns_alike(*entry)]
        for namespace, *_ in files:
            stack.enter_context(_rotary_replaced(namespace))
        yield Fused(**counts, rotary=len(files))


def _pays(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda" and tensor.dtype in (torch.float16, torch.bfloat16)


def _put(stack: ExitStack, module: nn.Module, fused: Forward) -> bool:
    """Lets the module run `fused` until the stack closes; False where something else has changed its forward."""
    own = module.__dict__
    place = "forward"  # the instance's: found before the class's method
    if place in own:
        if "_hf_hook" not in own or getattr(own.get("_old_forward"), "__func__", None) is not _code(module):
            return False
        place = "_old_forward"  # accelerate's wrapper calls it between its hooks
    own[place] = fused

    def restore() -> None:
        if own.get("forward") is fused:
            del own["forward"]
        if own.get("_old_forward") is fused:
            own["_old_forward"] = _code(module).__get__(module)

    stack.callback(restore)
    return True


def _code(module: nn.Module) -> Any:
    return type(module).forward


@dataclass(slots=True)
class _Found:
    """Finds what can be fused; one check for modules that are alike."""

    agree: dict[Any, bool] = field(default_factory=dict)

    def norm(self, module: Any) -> Forward | None:
        weight = getattr(module, "weight", None)
        if not type(module).__name__.endswith("RMSNorm"):
            return None
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(list(module.parameters())) != 1:
            return None
        if not _pays(weight):
            return None
        fused = rms_norm(module)
        key = (type(module), weight.shape, weight.dtype, weight.device, _settings(module))
        return fused if self._checked(key, lambda: _norms_alike(module, fused)) else None

    def mlp(self, module: Any) -> Forward | None:
        children = {name for name, child in module.named_children() if child is not None}
        projections = children - set(_ACTIVATIONS)
        if projections not in (_SPLIT, _JOINED) or module._parameters or module._buffers:
            return None
        weight = next(
            getattr(module, "gate_proj" if projections == _SPLIT else "gate_up_proj").parameters(), None
        )
        names = [name for name in _ACTIVATIONS if callable(getattr(module, name, None))]
        if weight is None or not _pays(weight) or len(names) != 1:
            return None
        joined = projections == _JOINED
        fused = partial(_mlp_forward, module, names[0], joined)
        act = getattr(module, names[0])
        key = (type(module), type(act), names[0], joined, weight.dtype, weight.device, _settings(module))
        return fused if self._checked(key, lambda: _mlps_alike(module, names[0], joined, weight)) else None

    def _checked(self, key: Any, check: Callable[[], bool]) -> bool:
        if key not in self.agree:
            self.agree[key] = check()
        return self.agree[key]


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What may tell apart two modules of a class: their numbers and names, and whose configuration they have."""
    plain = [(k, v) for k, v in vars(module).items() if v is None or isinstance(v, bool | int | float | str)]
    return (*plain, id(getattr(module, "config", None)))


def rms_norm(module: Any) -> Forward:
    """torch's fused norm with the weight and the epsilon of a transformers module."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))
    return partial(_norm_forward, module.weight, float(1e-6 if eps is None else eps))


def _norm_forward(weight: torch.Tensor, eps: float, hidden_states: torch.Tensor) -> torch.Tensor:
    kind = hidden_states.device.type
    if hidden_states.dtype != weight.dtype or not torch.is_autocast_enabled(kind):
        return nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)
    # autocast would compute in fp32 and hand fp32 on, for every layer behind to narrow again
    with torch.autocast(kind, enabled=False):
        return nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)


@torch.no_grad()
def _norms_alike(module: nn.Module, fused: Forward) -> bool:
    weight: Any = module.weight
    x = _random((4, weight.shape[0]), weight)
    x = (x * torch.tensor([0.01, 1.0, 10.0, 100.0], device=x.device)[:, None]).to(weight.dtype)
    expected = _code(module)(module, x)
    return _close(fused(x), expected, expected.abs())


def _mlp_forward(module: Any, activation: str, joined: bool, *args: Any, **kwargs: Any) -> torch.Tensor:
    act = getattr(module, activation)
    if len(args) != 1 or kwargs or _watched(act):
        own: torch.Tensor = _code(module)(module, *args, **kwargs)
        return own
    if joined:
        gate, up = module.gate_up_proj(args[0]).chunk(2, dim=-1)
    else:
        gate, up = module.gate_proj(args[0]), module.up_proj(args[0])
    alike = gate.shape == up.shape and gate.dtype == up.dtype and gate.device == up.device
    hidden = swiglu(gate, up) if alike and _pays(gate) else act(gate) * up
    out: torch.Tensor = module.down_proj(hidden)
    return out


def _watched(act: Any) -> bool:
    """Whether somebody wants the activation to be called."""
    if not isinstance(act, nn.Module):
        return False
    return "forward" in act.__dict__ or any(getattr(act, name) for name in _HOOKS) or _of_all_modules()


def _of_all_modules() -> bool:
    return bool(nn_module._has_any_global_hook())  # type: ignore[no-untyped-call]


class _Scaled(nn.Module):
    """Stands for a projection: x times each factor, side by side."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self._factors = factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * factor for factor in self._factors], dim=-1)


@torch.no_grad()
def _mlps_alike(module: nn.Module, activation: str, joined: bool, weight: torch.Tensor) -> bool:
    """Runs the module's code with projections that only scale: no weight is read, no hook of the user's called."""
    parts: dict[str, Any] = {"gate_up_proj": _Scaled(1.0, -0.5)} if joined else {}
    parts = parts or {"gate_proj": _Scaled(1.0), "up_proj": _Scaled(-0.5)}
    parts["down_proj"] = _Scaled(1.0)
    act = getattr(module, activation)
    if isinstance(act, nn.Module):
        if _watched(act):
            act = copy.copy(act)
            act.__dict__.update({name: type(getattr(act, name))() for name in _HOOKS})
            act.__dict__.pop("forward", None)
        parts[activation] = act
    x = _random((4, 64), weight)
    x = (x * torch.tensor([0.01, 1.0, 10.0, 100.0], device=x.device)[:, None]).to(weight.dtype)
    try:
        probe = copy.copy(module)
        probe.__dict__["_modules"] = parts
        expected = _code(module)(probe, x)
    except Exception:  # code that asks for more than this is not the plain formula
        return False
    return _close(_mlp_forward(probe, activation, joined, x), expected, expected.abs())


def _rotary_files(model: nn.Module) -> Iterator[tuple[dict[str, Any], torch.Tensor, int]]:
    """Namespaces in which an attention's forward finds its rotary function; a weight and the head width of it."""
    seen: set[int] = set()
    for module in model.modules():
        forward: Any = inspect.unwrap(_code(module))
        code, namespace = getattr(forward, "__code__", None), getattr(forward, "__globals__", None)
        if code is None or namespace is None or _ROTARY not in code.co_names or id(namespace) in seen:
            continue
        weight = next(module.parameters(), None)
        if weight is not None and _pays(weight) and callable(namespace.get(_ROTARY)):
            seen.add(id(namespace))
            width = getattr(module, "head_dim", None)
            yield namespace, weight, width if isinstance(width, int) and not width % 2 else 8


@torch.no_grad()
def _turns_alike(namespace: dict[str, Any], weight: torch.Tensor, width: int) -> bool:
    """Whether a file's function is the plain formula, with halves of cos and sin that differ."""
    with _lock:
        replaced = _replaced.get(id(namespace))
    original = namespace[_ROTARY] if replaced is None else replaced.original
    q, k = (_random((2, 5, heads, width), weight).to(weight.dtype).transpose(1, 2) for heads in (4, 2))
    cos, sin = (_random((2, 5, width), weight, seed).to(weight.dtype) for seed in (1, 2))
    try:
        expected = original(q, k, cos, sin)
        pairs = list(zip(rotary(q, k, cos, sin), expected, (q, k), strict=True))
    except Exception:  # a function of other arguments
        return False
    size = cos.abs().unsqueeze(1), sin.abs().unsqueeze(1)
    return all(_close(x, y, z.abs() * size[0] + z.abs().roll(width // 2, -1) * size[1]) for x, y, z in pairs)


@dataclass(slots=True)
class _Replaced:
    original: Callable[..., Any]
    ours: Callable[..., Any]
    users: int = 0


_lock = threading.Lock()
_replaced: dict[int, _Replaced] = {}


@contextmanager
def _rotary_replaced(namespace: dict[str, Any]) -> Iterator[None]:
    with _lock:
        entry = _replaced.get(id(namespace))
        if entry is None:
            entry = _Replaced(namespace[_ROTARY], _turning(namespace[_ROTARY]))
            _replaced[id(namespace)] = entry
            namespace[_ROTARY] = entry.ours
        entry.users += 1
    try:
        yield
    finally:
        with _lock:
            entry.users -= 1
            if not entry.users:
                del _replaced[id(namespace)]
                if namespace.get(_ROTARY) is entry.ours:
                    namespace[_ROTARY] = entry.original


def _turning(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 4 and not kwargs and _turnable(*args):
            return rotary(*args)
        return original(*args, **kwargs)

    return apply


def _turnable(q: Any, k: Any, cos: Any, sin: Any) -> bool:
    """Whether these are what `kernels.rotary` serves, with one dtype as in the check."""
    tensors = (q, k, cos, sin)
    if not all(isinstance(x, torch.Tensor) for x in tensors) or not _pays(q):
        return False
    if len({(x.dtype, x.device) for x in tensors}) > 1 or q.dim() != 4 or k.dim() != 4:
        return False
    B, _, T, D = q.shape
    if D % 2 or (k.shape[0], *k.shape[2:]) != (B, T, D) or cos.requires_grad or sin.requires_grad:
        return False
    return cos.shape == sin.shape and tuple(cos.shape) in ((B, T, D), (1, T, D))


def _random(shape: tuple[int, ...], like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(*shape, device=like.device, dtype=torch.float32, generator=generator)


def _close(found: Any, expected: Any, terms: torch.Tensor) -> bool:
    """Whether two results differ by no more than roundings of the terms that were added."""
    if (
        not isinstance(expected, torch.Tensor)
        or found.shape != expected.shape
        or found.dtype != expected.dtype
    ):
        return False
    room = _ROUNDINGS * torch.finfo(expected.dtype).eps * terms.float() + 1e-6
    return bool(((found.float() - expected.float()).abs() <= room).all())
