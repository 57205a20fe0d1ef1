"""`probe`: what can be read linearly from pooled rows, label by label along the hook points."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.cluster import joined, map_tasks
from modegap.engine.cluster.passes import opened, where
from modegap.kernels import KernelPath
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .calibration import entropy
from .config import ProbeConfig
from .fit import CellFit, Drawn, Labelled, fit_point
from .labels import Classes, LabelProblem, categories, check_groups, classes_of, first_top_word, usable
from .outcome import Cell, ProbeResult
from .pooled import Pool, check_pool, complete_samples, has_pool, pooled_rows, stored_pool
from .splits import Codes

if TYPE_CHECKING:
    from modegap.engine.cluster import Cluster

LEXICAL = "lexical"
SAMPLES = "samples"
"""The control task that shuffles the classes over the samples."""
_TEXTS = ("text", "transcript", "caption", "question")


def probe(
    store: ActivationStore | str | Path,
    points: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    config: ProbeConfig | None = None,
    *,
    progress: Any = None,
    cluster: str | Cluster | None = None,
    **options: Any,
) -> ProbeResult:
    """Linear probes of every label at every hook point, on one row a sample (see `config.pool`).

    A label that cannot be probed (one class, too few samples, rows that are not finite) leaves a message in its
    cells and the rest goes on. One hook point's rows are held at a time, as float32 [samples, d]; see `fit_point`
    for the working memory. A store whose extraction is not finished is probed up to its first incomplete sample.

    Args:
        store: a store with pooled rows, or its path.
        points: hook points; None takes every one with pooled rows.
        labels: label columns; None takes all of them. `lexical` is the first top word of the text column.
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every cell.
        cluster: workers that share the cells (on GPUs the hook points), as in `reduce`.

    Raises:
        ValueError: unknown options, or no such device.
        StoreError: an unknown hook point or label, or a point without pooled rows.
    """
    given = {"points": points, "labels": labels}
    config = with_options(
        config or ProbeConfig(), {**{k: v for k, v in given.items() if v is not None}, **options}
    )
    store = as_store(store)
    names = _points(store, config.points, config.pool)
    classes = {label: label_classes(store, label) for label in label_names(store, config.labels)}
    groups = _column(store, config.group)
    kinds = _column(store, None if config.control == SAMPLES else config.control)
    _check_device(config.device)
    count = min(complete_samples(store, name, config.pool) for name in names)
    if count == 0:
        raise StoreError("the store has no complete sample yet: resume its extraction, then probe")
    cells: dict[tuple[str, str], Cell] = {}
    paths: list[KernelPath] = []
    shared = _Given(count, classes, config, groups, kinds)
    for point, label, cell, fit in _cells(store, shared, names, cluster, progress):
        cells[point, label] = cell
        if fit is not None:
            paths.append(KernelPath("probe", fit.solver, fit.why))
    certificate = Certificate(
        mode="float32",
        kernel_paths=path_facts(paths),
        count=count,
        width=max(store.points[point].width for point in names),
        store_hashes={"store": store.content_hash()},
    )
    ordered = tuple(cells[point, label] for label in classes for point in names)
    return ProbeResult(
        replace(config, points=tuple(names), labels=tuple(classes)),
        tuple(names),
        tuple(classes),
        ordered,
        certificate,
        pool=stored_pool(store) if config.pool == "stored" else config.pool,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """What the cells share."""

    count: int
    classes: Mapping[str, Classes]
    config: ProbeConfig
    groups: Codes | None
    kinds: Codes | None


_Found = tuple[str, str, Cell, "CellFit | None"]


def _cells(
    store: ActivationStore, given: _Given, names: Sequence[str], cluster: str | Cluster | None, progress: Any
) -> Iterator[_Found]:
    """Every cell, here or by workers."""
    labels, total = list(given.classes), len(names) * len(given.classes)
    if cluster is None:
        done = 0
        drawn: Drawn = {}
        for point in names:
            for found in _of_point(store, point, labels, given, drawn):
                done += 1
                yield found
                if progress is not None:
                    progress(done, total)
        return
    # On a GPU the labels of a hook point are fitted side by side, which a division would undo; and token rows are
    # averaged once a hook point.
    whole = given.config.on_device or given.config.pool != "stored"
    parts = [labels] if whole else [[label] for label in labels]
    items = [(point, part) for point in names for part in parts]
    weights = [len(part) for _, part in items]
    shared = (where(store), store.plan_hash, store.content_hash(), given)
    with joined(cluster) as workers:
        assert workers is not None
        rows = map_tasks(workers, _on_worker, items, shared, name="probe", weights=weights, progress=progress)
    for cells in rows:
        yield from cells


def _on_worker(item: tuple[str, list[str]], shared: tuple[str, str, str, _Given]) -> list[_Found]:
    *of, given = shared
    return list(_of_point(opened(*of), item[0], item[1], given, {}))


def _of_point(
    store: ActivationStore, point: str, labels: Sequence[str], given: _Given, drawn: Drawn
) -> Iterator[_Found]:
    """The cells of some labels at a hook point, whose rows are read here."""
    x = pooled_rows(store, point, given.count, given.config.pool)
    for label, cell, fit in _point(x, point, labels, given, drawn):
        yield point, label, cell, fit


def _point(
    x: NDArray[np.float32], point: str, labels: Sequence[str], given: _Given, drawn: Drawn
) -> Iterator[tuple[str, Cell, CellFit | None]]:
    """(label, cell, fit or None where there is a message) of every label at a hook point."""
    found: dict[str, tuple[Labelled, tuple[str, ...]]] = {}
    finite = bool(np.isfinite(x.sum(axis=0, dtype=np.float64)).all())
    for label in labels:
        known = given.classes[label]
        try:
            found[label] = _labelled(x, label, known, given, finite=finite)
        except LabelProblem as problem:
            yield label, Cell(point, label, message=str(problem), notes=known.notes), None
    fits = fit_point(x, [cell for cell, _ in found.values()], given.config, drawn)
    for (label, (cell, notes)), fit in zip(found.items(), fits, strict=True):
        yield label, _cell(point, label, cell, notes, fit, given.config), fit


def _labelled(
    x: NDArray[np.float32],
    label: str,
    classes: Classes,
    given: _Given,
    *,
    finite: bool,
) -> tuple[Labelled, tuple[str, ...]]:
    config, groups, kinds = given.config, given.groups, given.kinds
    keep, codes, notes = usable(replace(classes, codes=classes.codes[: len(x)]), config.test_fraction)
    if groups is not None and label != config.group:
        check_groups(codes, groups[keep], config.test_fraction)
    elif groups is not None:
        raise LabelProblem("it is the group that no split divides, so no probe of it can be tested")
    if kinds is not None and label == config.control:
        raise LabelProblem("it is the column of the control task, whose random classes would be its own")
    if not finite and (bad := int((~np.isfinite(x[keep]).all(axis=0)).sum())):
        raise LabelProblem(f"{bad} of {x.shape[1]} channels hold NaN or infinities: run `modegap verify`")
    if groups is not None:
        groups = groups[keep]
    return Labelled(keep, codes, groups, None if kinds is None else kinds[keep]), notes


def _cell(
    point: str, label: str, of: Labelled, notes: tuple[str, ...], fit: CellFit, config: ProbeConfig
) -> Cell:
    stopped = sum(not score.converged for score in fit.scores)
    if stopped:
        notes = (
            *notes,
            f"{stopped} of {len(fit.scores)} fits at {point} stopped at {config.iterations} iterations",
        )
    counts = np.bincount(of.codes)
    return Cell(
        point,
        label,
        len(of.codes),
        len(counts),
        float(counts.max() / len(of.codes)),
        fit.scores,
        notes=notes,
        entropy=entropy(of.codes),
        solver=fit.solver,
    )


def _check_device(device: str | None) -> None:
    if device is None or device.startswith("cpu"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: got {device!r}, which cannot be used here ({error}); use 'cpu'") from None


def _points(store: ActivationStore, wanted: Sequence[str] | None, pool: Pool) -> list[str]:
    pooled = [name for name in store.points if has_pool(store, name, pool)]
    for name in wanted or ():
        if name not in store.points:
            raise StoreError(unknown_name("hook point", name, store.points))
        check_pool(store, name, pool)
    if not (wanted or pooled):
        raise StoreError(
            f"no hook point of this store has pooled rows (pool={pool}): extract with rows=pooled or rows=both"
        )
    return sorted(wanted or pooled, key=pipeline_order)


def pipeline_order(point: str) -> tuple[int, int]:
    """Sort key: the order of the pipeline; points with other names come last, in the order given."""
    hidden = re.fullmatch(r"llm_hidden_(\d+)", point)
    if hidden:
        return (3, int(hidden[1]))
    known = {"encoder_output": 0, "adapter_output": 1, "text_embedding": 2, "llm_final": 4}
    return (known.get(point, 5), 0)


def label_names(store: ActivationStore, wanted: Sequence[str] | None) -> list[str]:
    """The label columns to look at: those wanted, or all with classes, and `lexical` where there are texts.

    Raises:
        StoreError: an unknown label, or none.
    """
    known = [name for name, column in store.labels.items() if name not in _TEXTS and column.kind != "text"]
    if _text_column(store) is not None and LEXICAL not in store.labels:
        known.append(LEXICAL)
    for name in wanted or ():
        if name not in known and name not in store.labels:
            raise StoreError(unknown_name("label", name, known))
    if not (wanted or known):
        raise StoreError("this store has no labels to probe: give them in the data set when extracting")
    return list(dict.fromkeys(wanted or known))


def _column(store: ActivationStore, label: str | None) -> Codes | None:
    """Number of every sample's value in a column; a missing value is one of its own."""
    if label is None:
        return None
    if label not in store.labels:
        raise StoreError(unknown_name("label", label, store.labels))
    codes = categories(store.labels[label].values).codes
    alone = np.flatnonzero(codes < 0)
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(len(alone))
    return codes


def label_classes(store: ActivationStore, label: str) -> Classes:
    """The classes of a label column, or of the texts for `lexical`."""
    if label in store.labels:
        column = store.labels[label]
        return classes_of(column.kind, column.values)
    text = _text_column(store)
    assert text is not None
    return first_top_word(store.labels[text].values)


def _text_column(store: ActivationStore) -> str | None:
    return next((name for name in _TEXTS if name in store.labels), None)
