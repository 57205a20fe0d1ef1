"""A model's modules as an outline, repeated layers folded, hook points marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of the outline.

    Attributes:
        path: module path; `layers.0 to .31` for a run of layers of one class.
        depth: how many modules are above it.
        kind: class of the module, or of each of the run.
        parameters: values in it, in the run as a whole.
        points: hook points whose module it is, `:input` after those that read its input.
        note: what it was found to be (decoder, encoder, ...), and why.
    """

    path: str
    depth: int
    kind: str
    parameters: int
    points: tuple[str, ...]
    note: str


def outline(loaded: LoadedModel, depth: int = 3) -> list[Branch]:
    """Modules down to `depth`, and deeper wherever a hook point is; in the order they were registered.

    Raises:
        ValueError: a depth below one.
    """
    if depth < 1:
        raise ValueError(f"got depth {depth}; expected at least 1")
    marked: dict[str, list[str]] = {}
    for name, point in loaded.points.items():
        at_rows = ":placeholders" if point.token is not None else ":input"
        marked.setdefault(point.module_path, []).append(name + (at_rows if point.pick == "input" else ""))
    return list(_walk(loaded.model, "", 0, depth, marked, _notes(loaded)))


def _notes(loaded: LoadedModel) -> dict[str, str]:
    parts = loaded.structure
    if parts is None:
        return {}
    named = {
        "decoder": parts.decoder,
        "layers": parts.layers,
        "encoder": parts.encoder,
        "adapter": parts.adapter,
    }
    notes = {path: f"{part}: {parts.why[part]}" for part, path in named.items() if path is not None}
    notes[parts.embedding] = "embedding: get_input_embeddings()"
    if parts.norm is not None:
        notes[parts.norm] = f"norm: {parts.why['norm']}"
    return notes


def _walk(
    module: nn.Module, path: str, at: int, depth: int, marked: dict[str, list[str]], notes: dict[str, str]
) -> Iterator[Branch]:
    for run in _runs(module):
        names = [f"{path}.{name}" if path else name for name, _ in run]
        first, last = names[0], names[-1]
        title = first if len(run) == 1 else f"{first} to .{last.rpartition('.')[2]}"
        points = tuple(point for name in names for point in marked.get(name, ()))
        if len(points) > 3:
            points = (points[0], f"... {points[-1]}")
        count = sum(weight.numel() for _, part in run for weight in part.parameters())
        kind = type(run[0][1]).__name__
        note = notes.get(first, "") if len(run) == 1 else f"{len(run)} layers of this class"
        yield Branch(title, at, kind, count, points, note)
        if len(run) > 1:
            continue
        wanted = any(other.startswith(first + ".") for other in (*marked, *notes))
        if at + 1 < depth or wanted:
            yield from _walk(run[0][1], first, at + 1, depth, marked, notes)


def _runs(module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Children, those of one composite class in a row in a list together."""
    run: list[tuple[str, nn.Module]] = []
    foldable = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.named_children():
        if run and not (foldable and type(child[1]) is type(run[0][1]) and any(child[1].children())):
            yield run
            run = []
        run.append(child)
    if run:
        yield run
