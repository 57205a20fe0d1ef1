"""What a plan accepts, and how labels, ids and chunks are laid out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modegap.stores import (
    ActivationStore,
    LabelColumn,
    PointPlan,
    StorePlan,
    aligned_empty,
    provenance,
    verify,
)

POINT = {"p": PointPlan(2, "pooled")}


def plan(n: int = 2, **changes: Any) -> StorePlan:
    return StorePlan(**{"points": POINT, "sample_ids": [str(i) for i in range(n)], **changes})


ESCAPES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    "a*",
    "a?",
    "[a]",
    "__x",
    ".hidden",
    "-x",
    "a b",
    "a\n",
    "é",
    "x" * 101,
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_escape_or_glob(name: str, tmp_path: Path) -> None:
    point = POINT["p"]
    with pytest.raises(ValueError, match="point name"):
        plan(points={name: point})
    with pytest.raises(ValueError, match="label name"):
        plan(labels={name: [1, 2]})
    if name:
        with pytest.raises(ValueError, match="stream name"):
            plan(points={"p": PointPlan(2, "tokens", np.array([1, 2]), stream=name)})
    assert list(tmp_path.iterdir()) == []


def test_names_that_share_a_folder() -> None:
    with pytest.raises(ValueError, match="differ only in case"):
        plan(points={"p": POINT["p"], "P": POINT["p"]})
    with pytest.raises(ValueError, match="taken by the sample ids"):
        plan(labels={"ID": [1, 2]})
    plan(points={"llm_hidden_16": POINT["p"], "_a.b-c": POINT["p"], "0": POINT["p"]})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least one sample id"),
        (["a", "a"], "'a' occurs twice"),
        (["a", ""], "sample id 1 must be a non-empty string"),
        (["a", "b\0"], "without NUL"),
        (["a", 3], "non-empty string"),
        (["é" * 128], "256 UTF-8 bytes, at most 255"),
        (["\ud800"], "not valid Unicode"),
    ],
)
def test_sample_ids(ids: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(sample_ids=ids)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"width": 0, "rows": "pooled"}, "width must be a positive integer"),
        ({"width": 2.0, "rows": "pooled"}, "width must be"),
        ({"width": 2, "rows": "all"}, "rows must be one of tokens, pooled, both"),
        ({"width": 2, "rows": "pooled", "dtype": "bfloat16"}, "dtype must be one of float16, float32"),
        ({"width": 2, "rows": "tokens"}, "token rows need lengths"),
        ({"width": 2, "rows": "tokens", "lengths": np.array([1.5])}, "token rows need lengths"),
        ({"width": 2, "rows": "tokens", "lengths": np.array([-1])}, "token rows need lengths"),
        ({"width": 2, "rows": "pooled", "lengths": np.array([1])}, "belong to token rows"),
    ],
)
def test_points(point: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointPlan(**point)


def test_plans() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        plan(points={})
    for size in (0, 16 * 2**20 + 1):
        with pytest.raises(ValueError, match="chunk_bytes must be"):
            plan(chunk_bytes=size)
    with pytest.raises(ValueError, match="one length a sample: got 3, expected 2"):
        plan(points={"p": PointPlan(2, "tokens", np.array([1, 2, 3]))})
    with pytest.raises(ValueError, match="'b' has other lengths than the rest of its stream 's'"):
        plan(points={k: PointPlan(2, "tokens", np.array([1, i]), stream="s") for i, k in enumerate("ab")})
    with pytest.raises(ValueError, match="not representable as JSON"):
        plan(provenance={"model": object()})
    with pytest.raises(ValueError, match="not representable as JSON"):
        plan(provenance={"loss": math.nan})


def test_chunks_are_whole_pages_of_at_most_16_mib() -> None:
    lengths = np.full(1000, 600)
    for width in (768, 1152, 2048, 3584, 4096, 5120, 8192):
        made = StorePlan({"p": PointPlan(width, "both", lengths)}, [str(i) for i in range(1000)])
        info = made.infos()["p"]
        size = info.chunk_rows * width * 2
        assert size % 4096 == 0
        assert 15 * 2**20 < size <= 16 * 2**20
        assert info.pooled_chunk_rows == 128
    assert made.nbytes() > 600_000 * 8192 * 2
    assert (
        StorePlan({"p": PointPlan(4096, "tokens", lengths)}, made.sample_ids).infos()["p"].chunk_rows == 2048
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b", "a", "b"], "category"),
        (["a", "b", None, "a"], "text"),
        (["a", None, None, "a"], "category"),
        (["x" * 65] * 4, "text"),
        (["a", "b", "c", "d"], "text"),
        (["", None, "naïve ☃", "long " * 50], "text"),
        ([1, 2, None, -(2**63) + 1], "number"),
        ([1, 2.5, None, math.nan], "number"),
        ([np.int32(1), np.float32(0.5), np.bool_(True), True], "number"),
        ([2**53, 0.5, None, -(2.0**63)], "number"),
        ([None, None, None, None], "category"),
        (LabelColumn("category", ("a", "b", "c", None)), "category"),
        (LabelColumn("text", ("a", "a", "a", "a")), "text"),
        (LabelColumn("number", (None, None, None, None)), "number"),
    ],
)
def test_labels_come_back(tmp_path: Path, values: Any, kind: str) -> None:
    made = plan(4, labels={"label": values})
    store = ActivationStore.create(tmp_path / "s.zarr", made)
    assert verify(store).damaged == []
    column = store.labels["label"]
    assert column.kind == kind
    given_values = values.values if isinstance(values, LabelColumn) else values
    for found, put in zip(column.values, given_values, strict=True):
        missing = put is None or put != put
        assert found is None if missing else found == put
    assert column == made.columns()["label"] or any(isinstance(v, np.generic) for v in given_values)
    if kind == "number":
        assert column.numbers().dtype == np.float64
        with pytest.raises(ValueError, match="no categories"):
            column.codes()
    else:
        codes = column.codes()
        assert [None if c < 0 else column.categories[c] for c in codes] == list(column.values)
        with pytest.raises(ValueError, match="is not a number"):
            column.numbers()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "one value a sample: got 1, expected 2"),
        ([1, "a"], "mixes strings and numbers"),
        ([1, math.inf], "of sample '1' is infinite"),
        ([1, [2]], "must be str, int, float or None, got list"),
        ([1, 2**63], "does not fit 64 bits"),
        ([0.5, 2**53 + 1], "of sample '1' is 9007199254740993, which float64 cannot hold"),
        (LabelColumn("number", ("a", "b")), "declared a number but holds strings"),
        (LabelColumn("text", (1, 2)), "declared a text but holds numbers"),
    ],
)
def test_labels_that_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(labels={"label": values})


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_any_text_comes_back(texts: list[str | None]) -> None:
    import tempfile

    made = plan(len(texts), labels={"label": LabelColumn("text", tuple(texts))})
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore.create(Path(folder) / "s.zarr", made)
        assert store.labels["label"].values == tuple(texts)


def test_sample_ids_come_back(tmp_path: Path) -> None:
    ids = ["a", "é" * 127, " spaced ", "x/y.jpg", "日本"]
    store = ActivationStore.create(tmp_path / "s.zarr", plan(5, sample_ids=ids))
    assert store.samples == ids
    assert ActivationStore.open(store.path).samples == ids


def test_provenance() -> None:
    record = provenance(model="m", dataset="d", config={"b": 1, "a": [2]}, note="free")
    assert record["config_hash"] == provenance(config={"a": [2], "b": 1})["config_hash"]
    assert record["config_hash"] != provenance(config={"a": [2], "b": 2})["config_hash"]
    assert record["versions"]["numpy"] == np.__version__
    assert record["note"] == "free"
    assert provenance()["config_hash"] is None
    with pytest.raises(ValueError, match="provenance computes versions itself"):
        provenance(versions={})
    with pytest.raises(ValueError, match="JSON"):
        provenance(config={"a": {1}})


def test_aligned_buffers() -> None:
    for shape in (0, 1, 5000, (3, 4097), (0, 4)):
        array = aligned_empty(shape, np.float16)
        assert array.ctypes.data % 4096 == 0
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.flags.writeable
    with pytest.raises(ValueError, match="negative"):
        aligned_empty((2, -1))


def test_importing_the_stores_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, modegap.stores; print([m for m in ('torch', 'zarr', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
