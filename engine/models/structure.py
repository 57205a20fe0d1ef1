"""Finds decoder, encoder and adapter by what the modules are, not by what they are called.

Module paths moved between transformers versions (`vision_tower` became `model.vision_tower`, a language model
lost its own head), so nothing here knows a full path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from modegap.engine.errors import EngineError

ADAPTER_NAMES = re.compile(
    r"projector|projection|connector|adapter|adaptor|merger|aligner|resampler|perceiver"
)
# What the parts of models with several encoders are called.
MODALITY_NAMES = {
    "image": re.compile(r"vision|visual|image|img"),
    "audio": re.compile(r"audio|speech|sound|acoustic"),
}
FINAL_NORMS = re.compile(r"norm|norm_f|ln_f|final.*|last.*")
# BART's norm of the embeddings and Gemma's of a second table are registered after the layers too.
OTHER_NORMS = re.compile(r"layernorm_embedding|per_layer.*")


@dataclass(frozen=True, slots=True)
class Structure:
    """Module paths of a model's parts, and why each was chosen.

    Attributes:
        decoder: owns the decoder layers.
        layers: the list of decoder layers.
        n_layers: how many there are.
        embedding: the input embeddings.
        norm: the final norm; None when the decoder has none.
        hidden_size: width of the decoder's hidden states.
        encoder: outermost module of the modality encoder; None for a text model.
        adapter: maps encoder rows to the decoder's width; None for a text model.
        entry: the module at whose input the rows that the decoder reads must be taken, because those that
            leave the adapter are not the same; None where they are.
        crossed: whether the decoder reads media by cross-attention, so that no position stands for a row.
        why: part name to the reason.
    """

    decoder: str
    layers: str
    n_layers: int
    embedding: str
    norm: str | None
    hidden_size: int
    encoder: str | None
    adapter: str | None
    entry: str | None
    crossed: bool
    why: dict[str, str]


def read_structure(model: nn.Module, modality: str | None = None) -> Structure:
    """The parts of a causal language model, with or without a modality encoder.

    Args:
        model: the model.
        modality: `image` or `audio`: which encoder of several is meant; the largest unless given.

    Raises:
        EngineError: no decoder stack was found.
    """
    paths = {module: path for path, module in model.named_modules()}
    embedding, width = _input_embeddings(model)
    stacks = [path for path, module in model.named_modules() if _is_stack(module)]
    stacks = [path for path in stacks if not any(_inside(path, other) for other in stacks if other != path)]
    decoder, why = _decoder(model, paths, embedding, stacks)
    layers = _largest(model, [path for path in stacks if _parent(path) == decoder])
    norm = _final_norm(model.get_submodule(decoder), layers.rpartition(".")[2])
    reasons = {"decoder": why, "layers": "largest stack of layers in the decoder"}
    reasons["norm"] = (
        "last norm of the decoder after its layers" if norm else "no final norm: the decoder's output"
    )
    names = MODALITY_NAMES.get(modality or "")
    encoder = _encoder(model, decoder, [path for path in stacks if not _inside(path, decoder)], names)
    adapter = None
    if encoder is not None:
        reasons["encoder"] = (
            f"largest stack of {len(_stack_in(model, encoder, stacks))} layers outside the decoder"
            + (f", of those named like {modality}" if names is not None and names.search(encoder) else "")
        )
        head = _output_embeddings(model)
        adapter, reasons["adapter"] = _adapter(model, decoder, encoder, head, width, stacks, names)
    entry = _entry(model, decoder, layers, encoder, adapter, width)
    if entry is not None:
        reasons["entry"] = entry[1]
    return Structure(
        decoder=decoder,
        layers=layers,
        n_layers=len(list(model.get_submodule(layers).children())),
        embedding=paths[embedding],
        norm=_join(decoder, norm) if norm else None,
        hidden_size=width,
        encoder=encoder if adapter is not None else None,
        adapter=adapter,
        entry=entry[0] if entry is not None else None,
        crossed=any(
            "crossattention" in type(part).__name__.lower() for part in model.get_submodule(decoder).modules()
        ),
        why=reasons,
    )


def output_width(module: nn.Module) -> int | None:
    """Width of the rows a module puts out: that of its last layer with weights; None when it has none."""
    for leaf in reversed([part for part in module.modules() if not any(True for _ in part.children())]):
        weight = getattr(leaf, "weight", None)
        if weight is None:
            continue
        # a Linear stores [out, in]; GPT-2's Conv1D the other way round, and says so with `nf`
        return int(getattr(leaf, "nf", weight.shape[0]))
    return None


def _puts_out(module: nn.Module, width: int) -> bool:
    """Whether rows of `width` leave a module, by its last layer, its last matrix, or a bare matrix of its own."""
    if output_width(module) == width:
        return True
    matrices = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if matrices and matrices[-1].out_features == width:  # a norm that is registered last may come before it
        return True
    bare = [weight for weight in module.parameters(recurse=False) if weight.dim() == 2]
    return any(weight.shape[1] == width for weight in bare) and not hasattr(module, "weight")


def _input_embeddings(model: nn.Module) -> tuple[nn.Module, int]:
    get = getattr(model, "get_input_embeddings", None)
    found, cause = None, None
    try:
        found = get() if get is not None else None
    except (AttributeError, NotImplementedError) as error:
        # What transformers raises where a model defines none, or a fault of the model's own code: its author sees it.
        cause = error
    weight = getattr(found, "weight", None)
    if not isinstance(found, nn.Module) or not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise EngineError(
            f"{type(model).__name__} does not say which module embeds its tokens (get_input_embeddings); "
            'name the hook points: points={"adapter_output": "module.path"}'
        ) from cause
    return found, int(weight.shape[1])


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    found = get() if get is not None else None
    return found if isinstance(found, nn.Module) else None


def _is_stack(module: nn.Module) -> bool:
    """A list of layers: any ModuleList of composite modules, or a Sequential of at least two of one class."""
    parts = list(module.children())
    composite = bool(parts) and all(any(True for _ in part.children()) for part in parts)
    if isinstance(module, nn.Sequential):
        return composite and len(parts) > 1 and len({type(part) for part in parts}) == 1
    return isinstance(module, nn.ModuleList) and composite


def _decoder(
    model: nn.Module, paths: dict[nn.Module, str], embedding: nn.Module, stacks: list[str]
) -> tuple[str, str]:
    owner = _parent(paths.get(embedding, ""))
    if any(_parent(path) == owner for path in stacks):
        return owner, "owns the input embeddings and a stack of layers"
    get = getattr(model, "get_decoder", None)
    found = get() if get is not None else None
    # get_decoder() of some classes returns a wrapper with its own head: take the stack's own parent
    within = [path for path in stacks if found in paths and _inside(path, paths[found])]
    if not within:
        raise EngineError(
            f"{type(model).__name__} has no stack of decoder layers beside its input embeddings; "
            'name the hook points: points={"llm_final": "module.path"}'
        )
    return _parent(_largest(model, within)), "largest stack of layers in get_decoder()"


def _encoder(model: nn.Module, decoder: str, stacks: list[str], names: re.Pattern[str] | None) -> str | None:
    if not stacks:
        return None
    named = [path for path in stacks if names is not None and names.search(path.lower())]
    path = _largest(model, named or stacks)
    # climb while the parent still is beside the decoder, not above it
    while _parent(path) != path and not _inside(decoder, _parent(path)):
        path = _parent(path)
    return path


def _adapter(
    model: nn.Module,
    decoder: str,
    encoder: str,
    head: nn.Module | None,
    width: int,
    stacks: list[str],
    names: re.Pattern[str] | None,
) -> tuple[str | None, str]:
    groups: dict[str, list[tuple[str, bool]]] = {"named": [], "child": [], "beside": []}
    for path, module in model.named_modules():
        kind = type(module).__name__.lower()
        named = bool(ADAPTER_NAMES.search(path.lower()) or ADAPTER_NAMES.search(kind))
        if path == "" or module is head or not _has_matrix(module) or not _puts_out(module, width):
            continue
        if _inside(path, decoder) or _inside(decoder, path) or path == encoder or _inside(encoder, path):
            continue
        ours = names is not None and bool(names.search(path.lower()) or names.search(kind))
        others = [other for other in MODALITY_NAMES.values() if names is not None and other is not names]
        if not ours and any(other.search(path.lower()) for other in others):
            continue
        if _inside(path, encoder):  # Qwen2-VL's merger is a child of its encoder, Qwen2.5-Omni's is `proj`
            last = _parent(path) == encoder and path.rpartition(".")[2].startswith("proj")
            apart = not any(_inside(path, stack) or _inside(stack, path) for stack in stacks)
            if (named or last) and apart:
                groups["child"].append((path, ours))
        elif named:
            groups["named"].append((path, ours))
        elif not any(_inside(stack, path) for stack in stacks):  # not the encoder of another modality
            groups["beside"].append((path, ours))
    for group, found in groups.items():
        top = [
            (path, ours) for path, ours in found if not any(_inside(path, p) for p, _ in found if p != path)
        ]
        if top:
            path = max(top, key=lambda item: (item[1], _size(model.get_submodule(item[0]))))[0]
            where = "a child of" if group == "child" else "beside"
            return path, f"puts out the decoder's width ({width}), {where} the encoder"
    return None, "no module outside decoder and encoder puts out the decoder's width"


def _entry(
    model: nn.Module, decoder: str, layers: str, encoder: str | None, adapter: str | None, width: int
) -> tuple[str, str] | None:
    """Where the decoder's rows must be read because the adapter's are others, and why; None if they are one."""
    if encoder is None or adapter is None:
        return f"{layers}.0", "no encoder and adapter beside the decoder were found"
    if _inside(adapter, encoder):  # Qwen2.5-VL puts the merger's rows back in order afterwards
        return decoder, "the adapter is a child of the encoder, which may reorder its rows"
    if type(model).__name__.startswith("PaliGemma"):
        return decoder, "the model divides the adapter's rows by the square root of their width"
    for path, module in model.named_modules():
        if not _inside(adapter, path) or path == adapter:
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() >= 1 and weight.shape[-1] == width:  # LLaVA-NeXT's image_newline
                return decoder, f"the model mixes {_join(path, name)} into the adapter's rows"
    return None


def _final_norm(decoder: nn.Module, layers: str) -> str | None:
    after, seen = [], False
    for name, module in decoder.named_children():
        seen = seen or name == layers
        norm = "norm" in type(module).__name__.lower() and hasattr(module, "weight")
        if seen and norm and not OTHER_NORMS.fullmatch(name):
            after.append(name)
    usual = [name for name in after if FINAL_NORMS.fullmatch(name)]
    found = usual or after
    return found[-1] if found else None


def _stack_in(model: nn.Module, top: str, stacks: list[str]) -> list[nn.Module]:
    return list(model.get_submodule(_largest(model, [s for s in stacks if _inside(s, top)])).children())


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.dim() >= 2 for weight in module.parameters()) and not isinstance(module, nn.Embedding)


def _largest(model: nn.Module, paths: list[str]) -> str:
    return max(paths, key=lambda path: _size(model.get_submodule(path)))


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _inside(path: str, parent: str) -> bool:
    return parent == "" or path == parent or path.startswith(parent + ".")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def module_paths(model: nn.Module) -> Iterator[str]:
    """Every module path of a model, the root's empty one left out."""
    return (path for path, _ in model.named_modules() if path)
