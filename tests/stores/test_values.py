"""What fp16 cannot hold: scaled by a power of two, counted, never clamped; what is no number is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_material import files_of, fill, make_store, sample_columns, sample_rows, small_plan

from modegap.stores import ActivationStore, CommitRecord, PointPlan, SampleRows, StoreError, StorePlan
from modegap.stores.values import absmax, exponent_for, row_absmax


def one_point(path: Path, rows: np.ndarray, chunk_rows: int, dtype: str = "float16") -> ActivationStore:
    """A store of one pooled point, one sample a row."""
    size = np.dtype(dtype).itemsize
    point = PointPlan(rows.shape[1], "pooled", dtype=dtype)
    ids = [str(i) for i in range(len(rows))]
    plan = StorePlan({"p": point}, ids, chunk_bytes=chunk_rows * rows.shape[1] * size)
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for i, row in enumerate(rows):
            writer.put(i, {"p": SampleRows(pooled=row)})
    return store


def record(store: ActivationStore, chunk: int) -> CommitRecord:
    return store.commits(store.arrays[0]).record(chunk)


def test_overflow_is_scaled_counted_and_confined_to_its_chunk(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
    rows[5, 2], rows[5, 3], rows[6, 0] = 70000, -300000, 65504.5
    store = one_point(tmp_path / "s.zarr", rows, chunk_rows=4)
    array = store.rows("p", "pooled")
    assert [array.scale(k) for k in range(3)] == [1.0, 8.0, 1.0]
    assert [record(store, k).overflow for k in range(3)] == [0, 3, 0]
    assert record(store, 1).absmax == 300000
    _, stored, _ = array.chunk(1)
    assert np.isfinite(stored).all()
    # Rows put before the overflow are rescaled; away from subnormal numbers that is exact.
    expected = rows[4].astype(np.float16).astype(np.float32) / 8
    np.testing.assert_array_equal(stored[0].astype(np.float32), expected)
    np.testing.assert_array_equal(stored[1:], (rows[5:8] / np.float32(8)).astype(np.float16))
    true = array.read(4, 8)
    assert true.dtype == np.float32
    np.testing.assert_allclose(true, rows[4:8], rtol=2**-11)
    assert array.read(0, 4).dtype == np.float16


def test_later_overflow_scales_again(tmp_path: Path) -> None:
    rows = np.full((6, 4), 1.5, np.float32)
    for row, top in enumerate([1.0, 1e5, 1.0, 1e6, 1e9, 3e4]):
        rows[row, 0] = top
    store = one_point(tmp_path / "s.zarr", rows, chunk_rows=6)
    assert record(store, 0).exponent == exponent_for(1e9) == 14
    np.testing.assert_array_equal(store.rows("p", "pooled").read(0, 6)[:, 1:], rows[:, 1:])
    np.testing.assert_allclose(store.rows("p", "pooled").read(0, 6), rows, rtol=2**-11)


def test_the_largest_fp16_needs_no_scale_and_the_next_float_does(tmp_path: Path) -> None:
    rows = np.array([[65504.0], [np.nextafter(np.float32(65504), np.float32(1e9))]], np.float32)
    store = one_point(tmp_path / "s.zarr", rows, chunk_rows=1)
    assert [record(store, k).exponent for k in range(2)] == [0, 1]
    assert [record(store, k).overflow for k in range(2)] == [0, 1]


@given(st.floats(min_value=2.0**-140, max_value=2.0**127, width=32))
def test_the_exponent_is_the_smallest_that_fits(absmax: float) -> None:
    exponent = exponent_for(absmax)
    assert math.ldexp(absmax, -exponent) <= 65504
    assert exponent == 0 or math.ldexp(absmax, -exponent + 1) > 65504


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_row_absmax_is_that_of_numpy(dtype: type) -> None:
    rows = (np.random.default_rng(1).standard_normal((700, 300)) * 100).astype(dtype)
    rows[3], rows[4, 5], rows[5, 6], rows[6, 1] = 0, -0.0, np.nan, -np.inf
    found = row_absmax(rows)
    np.testing.assert_array_equal(np.delete(found, [5, 6]), np.delete(np.abs(rows).max(axis=1), [5, 6]))
    assert np.isnan(found[5])
    assert np.isinf(found[6])
    assert row_absmax(rows[:0]).shape == (0,)
    assert np.isnan(absmax(rows))
    assert np.isinf(absmax(rows[6:]))
    assert absmax(rows[6:]) == np.inf
    for part in (rows[:4], rows[3:5], rows[10:600], -np.abs(rows[10:20]), np.abs(rows[10:20]), rows[3:4]):
        assert absmax(part) == np.abs(part).max()
    assert absmax(rows[:0]) == absmax(rows[:, :0]) == 0


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_absmax_of_integers(dtype: type) -> None:
    assert absmax(np.array([3, 7, 5], dtype)) == 7
    assert absmax(np.array([-(2**31), 7], np.int32)) == 2**31


def test_float32_points_keep_every_bit(tmp_path: Path) -> None:
    rows = np.array([[3.4e38, 1e-45, -70000.123, 0.1]], np.float32)
    store = one_point(tmp_path / "s.zarr", rows, chunk_rows=1, dtype="float32")
    assert store.rows("p", "pooled").read(0, 1).tobytes() == rows.tobytes()
    assert record(store, 0).exponent == record(store, 0).overflow == 0


def test_what_no_scale_can_hold_names_the_dtype_that_does(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"plan dtype='float32'"):
        one_point(tmp_path / "s.zarr", np.array([[3.4028e38]], np.float32), chunk_rows=1)
    with pytest.raises(StoreError, match="beyond float32"):
        one_point(tmp_path / "t.zarr", np.array([[1e39]]), chunk_rows=1)
    largest = np.array([[65504 * 2.0**112]], np.float32)
    store = one_point(tmp_path / "u.zarr", largest, chunk_rows=1)
    assert store.rows("p", "pooled").read(0, 1)[0, 0] == largest[0, 0]


@pytest.mark.parametrize("large", [0, 1, 3])
@pytest.mark.parametrize("direct", [False, True])
def test_a_value_that_would_round_its_neighbours_away_is_refused(
    tmp_path: Path, large: int, direct: bool
) -> None:
    """Whichever comes first; where the rows before are on the disk already, they are looked at there."""
    rows = np.random.default_rng(0).standard_normal((4, 5, 8)).astype(np.float16 if direct else np.float32)
    point = PointPlan(8, "tokens", np.full(4, 5))
    plan = StorePlan({"p": point}, list("abcd"), chunk_bytes=1000)
    whole = ActivationStore.create(tmp_path / "whole.zarr", plan)
    with whole.writer() as writer:
        for sample in range(4):
            writer.put(sample, {"p": SampleRows(rows[sample])})
    given = [sample.astype(np.float32) if k == large else sample for k, sample in enumerate(rows)]
    given[large][:, 3] = 1e30
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    refused = max(large, 1)
    with store.writer() as writer:
        for sample in range(refused):
            writer.put(sample, {"p": SampleRows(given[sample])})
        with pytest.raises(
            StoreError, match=f"sample {refused} .* 1e\\+30 in sample '{'abcd'[large]}'"
        ) as caught:
            writer.put(refused, {"p": SampleRows(given[refused])})
        assert "samples 'a' to 'd'" in str(caught.value)
        assert "dtype='float32'" in str(caught.value)
        if large == refused:
            for sample in range(refused, 4):
                writer.put(sample, {"p": SampleRows(rows[sample])})
    assert not list(store.path.rglob("*.tmp"))
    assert store.n_complete == (4 if large == refused else 0)
    assert large != refused or files_of(store.path) == files_of(whole.path)


def test_what_is_next_to_nothing_may_become_nothing(tmp_path: Path) -> None:
    """Rows that fp16 does not hold without a scale either are no reason to refuse one; nor are zeros."""
    rows = np.array([[1e6, 0], [5e-6, 1e-8], [0, 0], [2.0, 1e-7]], np.float32)
    store = one_point(tmp_path / "s.zarr", rows, chunk_rows=4)
    np.testing.assert_allclose(store.rows("p", "pooled").read(0, 4), rows, rtol=2**-11, atol=2**-20)
    with pytest.raises(StoreError, match=r"the value 1e\+06 in sample '0'.*at most 5e-05"):
        one_point(tmp_path / "t.zarr", rows * np.float32([[1], [10], [1], [1]]), chunk_rows=4)
    # In a chunk of its own it is nobody's neighbour.
    alone = one_point(tmp_path / "u.zarr", rows * np.float32([[1], [10], [1], [1]]), chunk_rows=1)
    np.testing.assert_allclose(alone.rows("p", "pooled").read(1, 2)[0, 0], 5e-5, rtol=2**-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_stop_with_sample_and_point(tmp_path: Path, bad: float, dtype: type) -> None:
    plan = small_plan()
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        fill(writer, plan, range(6))
        rows = sample_rows(plan, 6)
        tokens = rows["llm_final"].tokens
        assert tokens is not None
        poisoned = tokens.astype(dtype)
        poisoned[2, 1] = bad
        message = r"sample 6 \('sample-006-é'\), tokens of 'llm_final': NaN or infinity in row 2"
        with pytest.raises(StoreError, match=message):
            writer.put(6, {**rows, "llm_final": SampleRows(poisoned)}, sample_columns(plan, 6))
        # The refused sample left no trace: the right one can follow.
        fill(writer, plan)
    assert files_of(store.path) == files_of(whole.path)


def test_a_run_stopped_by_nan_can_be_resumed(tmp_path: Path) -> None:
    plan = small_plan()
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    rows = {**sample_rows(plan, 12), "encoder_output": SampleRows(pooled=np.full(12, np.nan))}
    with pytest.raises(StoreError, match="sample-012"), store.writer() as writer:  # noqa: PT012
        fill(writer, plan, range(12))
        writer.put(12, rows, sample_columns(plan, 12))
    assert 0 < store.n_complete <= 12
    with store.writer() as writer:
        fill(writer, plan)
    assert files_of(store.path) == files_of(whole.path)


def test_shapes_dtypes_and_names_are_checked(tmp_path: Path) -> None:
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    good, columns = sample_rows(plan, 0), sample_columns(plan, 0)
    tokens = good["llm_final"].tokens
    assert tokens is not None
    cases = [
        ({**good, "llm_final": SampleRows(tokens[:2])}, columns, r"expected float rows of shape \(3, 4\)"),
        ({**good, "llm_final": SampleRows(tokens[:, :3])}, columns, r"shape \(3, 4\), got float32 \(3, 3\)"),
        ({**good, "llm_final": SampleRows(tokens.astype(int))}, columns, "got int64"),
        ({**good, "llm_final": SampleRows()}, columns, "tokens of 'llm_final': no rows given"),
        ({**good, "llm_final": SampleRows(tokens, tokens[0])}, columns, "planned with rows='tokens'"),
        ({**good, "llm_fnal": SampleRows(tokens)}, columns, "did you mean 'llm_final'"),
        ({k: v for k, v in good.items() if k != "wide"}, columns, "of 'wide': no rows given"),
        (good, {"lm": columns["llm"]}, "unknown stream 'lm', did you mean 'llm'"),
        (good, {**columns, "llm": (columns["llm"][0][:2], None)}, "ids of 'llm': expected 3 integers"),
        (good, {**columns, "llm": (columns["llm"][0] + 2**40, None)}, "values must be -2147483648 to"),
        (good, {**columns, "llm": (None, np.array([1, 4, 1]))}, "modality of 'llm': values must be 0 to 3"),
    ]
    with store.writer() as writer:
        for rows, streams, message in cases:
            with pytest.raises(ValueError, match=message):
                writer.put(0, rows, streams)
        assert writer.put(0, good, columns)


def test_columns_left_out_say_so(tmp_path: Path) -> None:
    plan = StorePlan({"p": PointPlan(2, "tokens", np.array([3]))}, ["a"])
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        writer.put(0, {"p": SampleRows(np.ones((3, 2), np.float16))})
    rows = store.rows("p")
    ids, modality = rows.token_ids(0, 3), rows.modality(0, 3)
    assert ids is not None
    assert modality is not None
    assert ids.tolist() == [-1, -1, -1]
    assert modality.tolist() == [0, 0, 0]


def test_both_checksum_libraries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    from modegap.stores import checksum

    data = np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8)
    found = []
    for hide in (False, True):
        with monkeypatch.context() as patch:
            if hide:
                patch.setitem(sys.modules, "awscrt.checksums", None)
            module = importlib.reload(checksum)
            # The check value of RFC 3720, appendix B.4: 32 bytes of zeros, and "123456789".
            assert module.crc32c(bytes(32)) == 0x8A9136AA
            assert module.crc32c(b"123456789") == 0xE3069283
            assert module.crc32c(b"6789", module.crc32c(b"12345")) == 0xE3069283
            assert module.crc32c(b"") == 0
            found.append(module.crc32c(data.data))
    importlib.reload(checksum)
    assert found[0] == found[1]
