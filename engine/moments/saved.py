"""`MomentsStore`: means and covariances of hook points on disk, without the rows they are of.

A folder with `moments.json` (the plan of the store that would have held the rows, ids, provenance, a hash of
every file) and one safetensors file for each point and kind of rows; `moments.json` is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch

from modegap.engine.certificate import Certificate
from modegap.engine.errors import EngineError
from modegap.stores.durable import replaced

from .result import ClassMomentsResult, MomentsResult

if TYPE_CHECKING:
    from modegap.stores import PointInfo

FORMAT = "modegap-moments/1"
Kind = Literal["tokens", "pooled"]
_INDEX = "moments.json"


class MomentsStore:
    """Statistics of the rows that a store of the same plan would hold; read-only.

    It answers as an `ActivationStore` does where only points, samples and provenance are asked for.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, index: Mapping[str, Any]) -> None:
        """Use `MomentsStore.open` or `save_moments` instead."""
        from modegap.stores import PointInfo

        self.path, self._index = path, index
        self.points: dict[str, PointInfo] = {
            name: PointInfo(name=name, **entry) for name, entry in index["plan"]["points"].items()
        }
        self.samples: list[str] = list(index["samples"])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The statistics in a folder.

        Raises:
            EngineError: there are none, or they are of another version.
        """
        folder = Path(path).expanduser()
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{folder} holds no finished statistics ({error}); run modegap extract --rows stats-only again"
            ) from error
        if index.get("format") != FORMAT:
            raise EngineError(
                f"{folder}: got format {index.get('format')!r}, expected {FORMAT}; extract it again"
            )
        return cls(folder, index)

    @property
    def provenance(self) -> dict[str, Any]:
        """What produced the statistics."""
        return dict(self._index["provenance"])

    @property
    def plan_hash(self) -> str:
        """That of a store of the same plan."""
        return str(self._index["plan_hash"])

    @property
    def n_complete(self) -> int:
        """Samples that the statistics are of: all of them."""
        return len(self.samples)

    def complete_samples(self) -> np.ndarray:
        """Bool [samples], all true: statistics are saved when they are complete."""
        return np.ones(len(self.samples), dtype=bool)

    def content_hash(self) -> str:
        """SHA-256 of the plan hash and the files' hashes."""
        from modegap.stores.origin import canonical_json, sha256

        return sha256(canonical_json([self.plan_hash, self._index["files"]]))

    def count(self, point: str, kind: Kind) -> int:
        """Rows that the statistics of a point are of."""
        self._known(point)
        return int(self._index["counts"][f"{point}.{kind}"])

    def moments(self, point: str, kind: Kind = "tokens") -> MomentsResult:
        """Mean and covariance of a point's rows.

        Raises:
            EngineError: an unknown point, or a damaged file.
        """
        tensors, facts = self._read(f"{point}.{kind}", point)
        return MomentsResult(**_common(tensors, facts, self.content_hash()))

    def class_moments(self, point: str, kind: Kind = "tokens") -> tuple[ClassMomentsResult, list[str]]:
        """Moments of the labelled rows with class means, and the class names.

        Raises:
            EngineError: an unknown point, no label was asked for, or a damaged file.
        """
        if self._index["by"] is None:
            raise EngineError(f"{self.path} has no class means; extract it with by=<label>")
        tensors, facts = self._read(f"{point}.{kind}.by", point)
        found = ClassMomentsResult(
            **_common(tensors, facts, self.content_hash()),
            class_count=tensors["class_count"],
            class_mean=tensors["class_mean"],
        )
        return found, list(self._index["categories"])

    def _known(self, point: str) -> None:
        from modegap.stores.errors import unknown_name

        if point not in self.points:
            raise EngineError(f"{self.path}: {unknown_name('point', point, self.points)}")

    def _read(self, name: str, point: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        self._known(point)
        file = self.path / f"{name}.safetensors"
        try:
            if _digest(file) != self._index["files"][name]:
                raise EngineError(
                    f"{file} does not match its hash; restore it from a copy or extract it again"
                )
            with safe_open(file, framework="pt") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                return tensors, json.loads(opened.metadata()["facts"])
        except (OSError, KeyError, SafetensorError) as error:
            raise EngineError(f"{file} cannot be read ({error}); extract it again") from error


def has_moments(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds finished statistics."""
    return (Path(path).expanduser() / _INDEX).is_file()


def save_moments(
    path: Path,
    results: Mapping[str, MomentsResult],
    *,
    plan: Mapping[str, Any],
    plan_hash: str,
    provenance: Mapping[str, Any],
    samples: Sequence[str],
    by: str | None = None,
    categories: Sequence[str] = (),
) -> MomentsStore:
    """Writes a `MomentsStore`; `results` by `<point>.<kind>`, with `.by` after it for class means.

    Raises:
        OSError: the folder cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, result in results.items():
        file = path / f"{name}.safetensors"
        _write(file, result)
        files[name] = _digest(file)
    index = {
        "format": FORMAT,
        "plan": plan,
        "plan_hash": plan_hash,
        "provenance": provenance,
        "samples": list(samples),
        "by": by,
        "categories": list(categories),
        "counts": {name: result.count for name, result in results.items()},
        "files": files,
    }
    text = json.dumps(index, indent=1, allow_nan=False)
    with replaced(path / _INDEX) as aside:
        aside.write_text(text, encoding="utf-8")
    return MomentsStore(path, json.loads(text))


def _write(file: Path, result: MomentsResult) -> None:
    from safetensors.torch import save_file

    tensors = {
        "mean": result.mean,
        "covariance": result.covariance,
        "absmax": result.absmax,
        "audit_columns": result.audit_columns,
    }
    if isinstance(result, ClassMomentsResult):
        tensors |= {"class_count": result.class_count, "class_mean": result.class_mean}
    facts = {
        "count": result.count,
        "overflow_count": result.overflow_count,
        "audit_error": result.audit_error,
        "certificate": result.certificate.to_json(),
    }
    with replaced(file) as aside:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            aside,
            metadata={"facts": json.dumps(facts)},
        )


def _common(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], content: str) -> dict[str, Any]:
    certificate = {**facts["certificate"], "store_hashes": {"store": content}}
    return {
        "count": int(facts["count"]),
        "mean": tensors["mean"],
        "covariance": tensors["covariance"],
        "absmax": tensors["absmax"],
        "overflow_count": int(facts["overflow_count"]),
        "audit_error": facts["audit_error"],
        "audit_columns": tensors["audit_columns"],
        "certificate": Certificate(**certificate),
    }


def _digest(file: Path) -> str:
    import hashlib

    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
