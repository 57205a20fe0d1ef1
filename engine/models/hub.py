"""Files and parts of models on the Hub or in a folder, with errors that name the repository at fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modegap.engine.errors import EngineError

from .remedies import remedy

LOADING_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError)


@dataclass(frozen=True, slots=True)
class Source:
    """A repository and how to reach it.

    Attributes:
        name: Hub id, or path of a folder.
        revision: branch, tag or commit.
        trust_remote_code: run the repository's own code.
        access: other arguments of `from_pretrained` that decide where files come from (`token`, `cache_dir`,
            `local_files_only`, `force_download`).
    """

    name: str
    revision: str | None
    trust_remote_code: bool
    access: tuple[tuple[str, Any], ...] = ()

    def other(self, name: str) -> Source:
        """Another repository that this one is made of: its newest revision, none of its own code."""
        return replace(self, name=name, revision=None, trust_remote_code=False)

    @property
    def local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.name).is_dir()

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `from_pretrained`."""
        common = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return {**common, **dict(self.access)}

    def file(self, filename: str) -> Path:
        """The local path of one file, downloaded if need be.

        Raises:
            EngineError: it is not there or cannot be reached.
        """
        if self.local:
            found = Path(self.name) / filename
            if not found.is_file():
                raise EngineError(f"{self.name} has no {filename}: give a folder in the published layout")
            return found
        from huggingface_hub import hf_hub_download

        with self.remedied():
            return Path(hf_hub_download(self.name, filename, revision=self.revision, **dict(self.access)))

    def json(self, filename: str) -> dict[str, Any]:
        """A JSON file's content.

        Raises:
            EngineError: as `file`, or no JSON object.
        """
        path = self.file(filename)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EngineError(f"{path} is no JSON ({error}); download it again") from error
        if not isinstance(found, dict):
            raise EngineError(f"{path} holds a {type(found).__name__}, expected a JSON object")
        return found

    def weights(self, *filenames: str) -> dict[str, torch.Tensor]:
        """The tensors of the first of these files that is there, memory-mapped; safetensors or torch.

        Nothing but tensors is read from a torch file.

        Raises:
            EngineError: none is there, or it is damaged.
        """
        path = self._first(filenames)
        if path.name.endswith(".index.json"):
            shards = sorted(set(self.json(path.name)["weight_map"].values()))
            return {name: value for shard in shards for name, value in read_weights(self.file(shard)).items()}
        found: dict[str, torch.Tensor] = read_weights(path)
        return found

    def _first(self, filenames: tuple[str, ...]) -> Path:
        for filename in filenames[:-1]:
            try:
                return self.file(filename)
            except EngineError:
                continue
        return self.file(filenames[-1])

    @contextmanager
    def remedied(self) -> Iterator[None]:
        """Turns what the Hub and transformers raise in the block into one line with the remedy."""
        try:
            yield
        except EngineError:
            raise
        except LOADING_ERRORS as error:
            raise EngineError(remedy(error, self.name, self.revision)) from error


def read_weights(path: Path) -> Any:
    """What a safetensors or torch file holds, memory-mapped; code in it is never run.

    Raises:
        EngineError: the file is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and safetensors errors share no base
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"cannot read {path} ({first}); download it again") from error
