"""Every error a user can meet: one line that names the remedy, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import ActivationStore, PointPlan, StoreError, StorePlan


def one_line(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(StoreError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_what_is_not_a_store(tmp_path: Path) -> None:
    one_line(lambda: ActivationStore.open(tmp_path / "none"), "no store at", "none", "check the path")
    one_line(lambda: ActivationStore.open(tmp_path), "is not an activation store", "check the path")
    (tmp_path / "_commit").mkdir()
    (tmp_path / "_commit" / "header.json").write_text("{}")
    one_line(lambda: ActivationStore.open(tmp_path), "has lost its zarr.json", "modegap repair")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    one_line(lambda: ActivationStore.open(tmp_path), "holds other Zarr data", "check the path")
    (tmp_path / "zarr.json").write_text("[]")
    one_line(lambda: ActivationStore.open(tmp_path), "restore it from a copy")
    (tmp_path / "zarr.json").write_text("{")
    one_line(lambda: ActivationStore.open(tmp_path), "cannot read", "restore it from a copy")
    with pytest.raises(ValueError, match="'r' or 'r\\+'"):
        ActivationStore.open(tmp_path, "w")  # type: ignore[arg-type]


def test_a_newer_or_damaged_header(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan(2))
    header = store.path / "zarr.json"
    document = json.loads(header.read_text())
    for key, value in (("schema_version", 2), ("profile", "striped")):
        changed = {**document, "attributes": {**document["attributes"], key: value}}
        header.write_text(json.dumps(changed))
        one_line(lambda: ActivationStore.open(store.path), str(value), "upgrade modegap")
    header.write_text(
        json.dumps({**document, "attributes": {**document["attributes"], "profile": "archive"}})
    )
    one_line(lambda: ActivationStore.open(store.path), "does not match its hash", "restore")
    del document["attributes"]["plan"]
    header.write_text(json.dumps(document))
    one_line(lambda: ActivationStore.open(store.path), "lacks the attribute 'plan'", "restore")


def test_names_suggest_the_nearest(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan(2))
    one_line(
        lambda: store.rows("llm_hiden_1"),
        "unknown point 'llm_hiden_1', did you mean 'llm_hidden_1'?",
        "'wide'",
    )
    one_line(lambda: store.rows("xyz"), "unknown point 'xyz'; this store has 'llm_hidden_1'")
    one_line(lambda: store.rows("encoder_output"), "no tokens rows", "kind='pooled'")
    one_line(lambda: store.rows("llm_final", "pooled"), "no pooled rows", "kind='tokens'")
    with pytest.raises(ValueError, match="kind must be"):
        store.rows("wide", "rows")  # type: ignore[arg-type]


def test_creating_over_something(tmp_path: Path) -> None:
    plan = small_plan(4)
    store = make_store(tmp_path / "s.zarr", plan)
    before = files_of(store.path)
    one_line(lambda: ActivationStore.create(store.path, plan), "exists already", "exist_ok=True")
    again = ActivationStore.create(
        store.path, small_plan(4, created="later", versions={"numpy": "9"}), exist_ok=True
    )
    assert again.n_complete == 4
    wider = {**plan.points, "wide": PointPlan(8, "both", plan.points["wide"].lengths, "float32", "llm")}
    other = StorePlan(wider, plan.sample_ids, plan.labels, {"model": "other"}, plan.chunk_bytes)
    one_line(
        lambda: ActivationStore.create(store.path, other, exist_ok=True),
        "made with another plan: points.wide.width is 7 in the store, 8 in the plan",
        "provenance.model is 'tiny' in the store, 'other' in the plan",
        "choose another path",
    )
    one_line(
        lambda: ActivationStore.create(store.path, small_plan(4, prompt="Describe."), exist_ok=True),
        "provenance.prompt is None in the store, 'Describe.' in the plan",
    )
    assert files_of(store.path) == before
    (tmp_path / "file").write_text("x")
    one_line(lambda: ActivationStore.create(tmp_path / "file", plan), "exists already")
    (tmp_path / "empty").mkdir()
    ActivationStore.create(tmp_path / "empty", plan)


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modegap.stores import creation as module

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_folder", full)
        one_line(
            lambda: ActivationStore.create(tmp_path / "s.zarr", small_plan()), "no space left", "bytes needed"
        )
    assert list(tmp_path.iterdir()) == []


def test_no_space_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    original, left = os.pwrite, 8000

    turn = threading.Lock()

    def write(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal left
        with turn:
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = original(descriptor, data[:left], offset)
            left -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        with pytest.raises(StoreError) as caught, store.writer() as writer:
            fill(writer, plan)
    message = str(caught.value)
    assert "no space left" in message
    assert re.search(r"\d+ bytes needed, \d{4,} free", message)
    assert "resume" in message
    assert not list(store.path.rglob("*.tmp"))
    assert 0 < store.n_complete < 20
    with store.writer() as writer:
        assert not writer.withdrawn
        fill(writer, plan)
    assert files_of(store.path) == files_of(whole.path)


def test_reading_ranges_and_buffers(tmp_path: Path) -> None:
    rows = make_store(tmp_path / "s.zarr", small_plan(4)).rows("llm_final")
    for start, stop in [(-1, 2), (3, 2), (0, 99)]:
        with pytest.raises(ValueError, match="outside"):
            rows.read(start, stop)
    for chunk in (-1, rows.n_chunks):
        with pytest.raises(ValueError, match="chunk must be 0 to"):
            rows.chunk(chunk)
        with pytest.raises(ValueError, match="chunk must be 0 to"):
            rows.scale(chunk)
    with pytest.raises(ValueError, match="sample index must be 0 to 3"):
        rows.sample(4)
    frozen = np.empty((rows.chunk_rows, 4), np.float16)
    frozen.flags.writeable = False
    for out in (
        np.empty((rows.chunk_rows - 1, 4), np.float16),
        np.empty((rows.chunk_rows, 5), np.float16),
        np.empty((rows.chunk_rows, 4), np.float32),
        np.empty((rows.chunk_rows, 8), np.float16)[:, ::2],
        frozen,
    ):
        with pytest.raises(
            ValueError, match="out must be writable, C-contiguous float16 with at least shape"
        ):
            rows.chunk(0, out)
    with pytest.raises(ValueError, match="shape"):
        rows.read(0, 3, np.empty((2, 4), np.float16))
    with pytest.raises(ValueError, match="out must be float16"):
        rows.read(0, 3, np.empty((3, 4), np.float64))
