"""The state of a training run in one file, so that a killed run goes on at the same step with the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modegap.engine.checkpoint import write_tensors
from modegap.engine.errors import EngineError

from .adapters import Adapter, State

_FORMAT = "modegap-lora-training-1"


@dataclass(slots=True)
class Position:
    """Where a run is.

    Attributes:
        epoch: running epoch, from 0.
        step: its next step.
        steps: optimiser steps done in all.
        loss: sum of the running epoch's sample losses.
        samples: samples of the running epoch so far.
        seconds: time of the running epoch so far.
        best: lowest validation loss.
        best_epoch: the epoch it was after.
        waited: epochs since.
        limit: largest batch that fitted, once one did not.
        history: finished epochs.
        finished: whether the run is over.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    limit: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


def save_state(
    path: Path,
    facts: Mapping[str, Any],
    position: Position,
    adapter: Adapter,
    optimiser: torch.optim.Optimizer,
    best: State,
) -> None:
    """Replace the file: weights, best weights, AdamW's moments, random state, position."""
    tensors = {f"weights/{name}": tensor for name, tensor in adapter.state().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for number, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimiser/{number}/{key}"] = value.detach().cpu().contiguous()
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and any(tensor.is_cuda for tensor in adapter.parameters.values()):
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random/cuda/{number}"] = state
    metadata = {
        "format": _FORMAT,
        "facts": json.dumps(facts, sort_keys=True),
        "position": json.dumps(asdict(position)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata)


def load_state(
    path: Path, facts: Mapping[str, Any], adapter: Adapter, optimiser: torch.optim.Optimizer
) -> tuple[Position, State] | None:
    """Puts weights, moments and random state back; (position, best weights), or None where there is no file.

    Raises:
        EngineError: the file is of another run (says what differs), or damaged.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT:
            raise EngineError(f"{path} is not the checkpoint of a training run; give another folder")
        known = json.loads(header["facts"])
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise EngineError(f"{path} cannot be read as a checkpoint ({error}); remove it") from error
    now = json.loads(json.dumps(facts))
    differ = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    if differ:
        raise EngineError(
            f"{path} is the checkpoint of another run ({', '.join(differ)} differ); give another folder, or remove it"
        )
    adapter.load(_part(tensors, "weights/"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _part(tensors, "optimiser/").items():
        number, _, key = name.partition("/")
        moments.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random/cpu"])
    cuda = _part(tensors, "random/cuda/")
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([cuda[str(number)] for number in range(len(cuda))])
    return Position(**json.loads(header["position"])), _part(tensors, "best/")


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
