"""Hook points: which tensor of which module a name stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from torch import nn

from modegap.engine.errors import EngineError

from .structure import Structure, module_paths

if TYPE_CHECKING:
    from .loaded import LoadedModel

Pick = Literal["input", "output"]
MEDIA_POINTS = ("encoder_output", "adapter_output")
_HIDDEN = re.compile(r"llm_hidden_(\d+)")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One named tensor.

    Attributes:
        name: what users call it.
        module_path: dotted path from the model; empty for the model itself.
        pick: whether the module's first input tensor or its (first) output tensor is meant.
        stream: which rows a sample has there: points of one stream have the same rows.
        why: how the module was found.
        token: the point is only the rows [n, d] at this token of `input_ids`, in reading order, of the
            embeddings that the module is fed; None for the whole tensor.
    """

    name: str
    module_path: str
    pick: Pick
    stream: str
    why: str
    token: int | None = None


def resolve(
    model: nn.Module,
    structure: Structure | None,
    overrides: Mapping[str, str] | None = None,
    *,
    media_token: int | None = None,
) -> dict[str, HookPoint]:
    """All hook points of a model.

    `llm_hidden_<k>` is transformers' `hidden_states[k]`: k = 0 enters the first layer, 0 < k < L leaves layer
    k, and k = L (the number of layers) has passed the final norm, as `llm_final` has.

    Args:
        model: the model; one that knows better than its structure tells has `hook_points`, name to
            (spec as in `overrides`, why).
        structure: its parts; None if only the overrides are to count.
        overrides: name to `module.path` (its output), `module.path:input`, or `module.path:placeholders` (the
            rows at the media placeholders of the embeddings it is fed); wins over what was found.
        media_token: id of the media placeholder in `input_ids`.

    Raises:
        EngineError: an override names a module that does not exist; suggests the nearest.
    """
    points = {} if structure is None else {p.name: p for p in _found(structure, media_token)}
    own: Mapping[str, tuple[str, str]] = getattr(model, "hook_points", {})
    given = {name: (spec, "given by the user") for name, spec in (overrides or {}).items()}
    for name, (spec, why) in {**own, **given}.items():
        path, _, pick = spec.partition(":")
        if pick not in ("", "input", "output", "placeholders"):
            raise EngineError(
                f"hook point {name}: got {spec!r}; expected module.path, module.path:input, :output or "
                ":placeholders"
            )
        if pick == "placeholders" and media_token is None:
            raise EngineError(f"hook point {name}: {type(model).__name__} names no media placeholder token")
        known = list(module_paths(model))
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.3)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise EngineError(f"hook point {name}: {type(model).__name__} has no module {path!r}{hint}")
        stream = points[name].stream if name in points else _stream(name, path, structure)
        at_rows = pick == "placeholders"
        points[name] = HookPoint(
            name,
            path,
            "input" if pick == "input" or at_rows else "output",
            stream,
            why,
            media_token if at_rows else None,
        )
    return points


def select(points: Mapping[str, HookPoint], wanted: Sequence[str], model_name: str) -> list[HookPoint]:
    """The points that names or globs (`llm_hidden_*`) ask for, in the order asked, each once.

    Raises:
        EngineError: a name that this model does not have; suggests the nearest and lists what there is.
    """
    if isinstance(wanted, str):
        wanted = [wanted]
    if not wanted:
        raise EngineError(f"no hook points asked for; {model_name} has {listing(points)}")
    names: list[str] = []
    for want in wanted:
        found = [want] if want in points else [name for name in points if fnmatchcase(name, want)]
        if not found:
            raise EngineError(_unknown(want, points, model_name))
        names += [name for name in found if name not in names]
    return [points[name] for name in names]


def listing(points: Iterable[str]) -> str:
    """Names in one line, `llm_hidden_0` to `llm_hidden_<L>` as a range."""
    names = list(points)
    hidden = sorted(int(found[1]) for name in names if (found := _HIDDEN.fullmatch(name)))
    rest = sorted(name for name in names if not _HIDDEN.fullmatch(name))
    if hidden:
        rest.append(f"llm_hidden_{hidden[0]} to llm_hidden_{hidden[-1]}")
    return ", ".join(rest)


def describe(loaded: LoadedModel) -> list[dict[str, str]]:
    """What each hook point resolved to: one row a point with `point, module, class, takes, why`.

    The decoder layers between the first and the last make one row.
    """
    rows, last = [], max((int(f[1]) for name in loaded.points if (f := _HIDDEN.fullmatch(name))), default=0)
    for name, point in loaded.points.items():
        found = _HIDDEN.fullmatch(name)
        k = int(found[1]) if found else 0
        inner = found is not None and 0 < k < last and point.why != "given by the user"
        if inner and k > 1:
            continue
        title, path = name, point.module_path or "(the model)"
        if inner and last > 2:
            title = f"llm_hidden_1 to llm_hidden_{last - 1}"
            path = re.sub(r"\.\d+$", f".0 to .{last - 2}", path)
        kind = type(loaded.model.get_submodule(point.module_path)).__name__
        takes = point.pick if point.token is None else "placeholders"
        rows.append({"point": title, "module": path, "class": kind, "takes": takes, "why": point.why})
    return rows


def _found(parts: Structure, media_token: int | None) -> Iterable[HookPoint]:
    if parts.adapter is not None:
        yield HookPoint(
            "encoder_output",
            parts.adapter,
            "input",
            "encoder",
            f"what the adapter is fed by {parts.encoder}: selected layer, without the rows it drops",
        )
    if parts.entry is not None and media_token is not None:
        why = f"what the decoder is fed at the placeholders: {parts.why['entry']}"
        yield HookPoint("adapter_output", parts.entry, "input", "adapter", why, media_token)
    elif parts.adapter is not None:
        # rows that enter by cross-attention stand at no position, and are as many as the encoder's
        stream = "cross" if parts.crossed else "adapter"
        yield HookPoint("adapter_output", parts.adapter, "output", stream, parts.why["adapter"])
    yield HookPoint(
        "text_embedding", parts.embedding, "output", "text", "input embeddings of the text's own tokens"
    )
    yield HookPoint("llm_hidden_0", f"{parts.layers}.0", "input", "llm", "enters the first decoder layer")
    for k in range(1, parts.n_layers):
        yield HookPoint(f"llm_hidden_{k}", f"{parts.layers}.{k - 1}", "output", "llm", f"output of layer {k}")
    final = parts.norm if parts.norm is not None else parts.decoder
    for name in (f"llm_hidden_{parts.n_layers}", "llm_final"):
        yield HookPoint(name, final, "output", "llm", parts.why["norm"])


def _stream(name: str, path: str, structure: Structure | None) -> str:
    if name.startswith("llm_"):
        return "llm"
    if structure is not None and (path + ".").startswith(structure.decoder + "."):
        return "llm"
    # a point of the user's own in the encoder or adapter may have other rows (a CLS token, more patches)
    return {"encoder_output": "encoder", "adapter_output": "adapter"}.get(name, name)


def _unknown(want: str, points: Mapping[str, HookPoint], model_name: str) -> str:
    if want in MEDIA_POINTS:
        return (
            f"{model_name} has no modality encoder, so no {want}; capture text_embedding or llm_hidden_<k>, "
            "or name "
            f'the module: points={{"{want}": "module.path"}}'
        )
    number = re.fullmatch(r"llm_hidden_(-?\d+)", want)
    if number and "llm_final" in points:
        hint = "llm_final" if int(number[1]) < 0 else None
    else:
        hint = next(iter(difflib.get_close_matches(want, points, n=1)), None)
    suffix = f"; did you mean {hint!r}?" if hint else ""
    return f"{model_name} has no hook point {want!r}: it has {listing(points)}{suffix}"
