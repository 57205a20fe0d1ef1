from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modegap.analyses.align import AlignConfig, Modes, align
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from modegap.stores.errors import StoreError

Array = np.ndarray
Points = Mapping[str, Array | Sequence[Array]]
Write = Callable[..., ActivationStore]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A store of the given rows: an array [samples, d] is pooled, a list of [t, d] is tokens."""
    made = 0

    def make(points: Points, *, ids: Sequence[str] | None = None, dtype: str = "float32") -> ActivationStore:
        nonlocal made
        made += 1
        n = len(next(iter(points.values())))
        names = list(ids) if ids is not None else [f"s{i}" for i in range(n)]
        plans = {
            name: PointPlan(rows.shape[1], "pooled", dtype=dtype)
            if isinstance(rows, np.ndarray)
            else PointPlan(
                rows[0].shape[1], "tokens", np.array([len(r) for r in rows]), dtype=dtype, stream=name
            )
            for name, rows in points.items()
        }
        store = ActivationStore.create(tmp_path / f"{made}.zarr", StorePlan(plans, names))
        with store.writer() as writer:
            for i in range(n):
                writer.put(
                    i,
                    {
                        name: SampleRows(pooled=rows[i])
                        if isinstance(rows, np.ndarray)
                        else SampleRows(tokens=rows[i])
                        for name, rows in points.items()
                    },
                )
        return ActivationStore.open(tmp_path / f"{made}.zarr")

    return make


def normal(
    n: int, scales: Sequence[float], seed: int, rotation: Array | None = None, mean: float = 0
) -> Array:
    """Rows float32 [n, d] with the given standard deviations along the columns of `rotation`."""
    rows = np.random.default_rng(seed).standard_normal((n, len(scales))) * np.asarray(scales)
    return ((rows if rotation is None else rows @ rotation.T) + mean).astype(np.float32)


def rotation(d: int, seed: int = 0) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def published(modal: Array, text: Array) -> tuple[Array, Array, Array, Array]:
    """The published formula, by numpy alone: eigenvalues, eigenvectors, rho, cumulative variance."""
    centred = [x.astype(np.float64) - x.astype(np.float64).mean(0) for x in (modal, text)]
    sigma_m, sigma_t = (x.T @ x / (len(x) - 1) for x in centred)
    values, vectors = np.linalg.eigh(sigma_m)
    values, vectors = values[::-1], vectors[:, ::-1]
    rho = np.array([u @ sigma_t @ u / max(value, 1e-10) for value, u in zip(values, vectors.T, strict=True)])
    return values, vectors, rho, np.cumsum(values) / values.sum()


def test_paper_law_is_the_published_formula(write: Write) -> None:
    modal = normal(300, np.geomspace(8, 0.1, 24), 1, rotation(24), mean=3)
    text = normal(200, np.geomspace(1, 2, 24), 2, rotation(24, 5))
    store = write({"adapter_output": modal})
    baseline = write({"llm_hidden_16": text, "llm_final": text * 2, "text_embedding": text * 3})
    modes = align(store, baseline, law="paper", top=10)
    values, _, rho, cumulative = published(modal, text)
    np.testing.assert_allclose(modes.eigenvalues, values, rtol=1e-9)
    np.testing.assert_allclose(modes.rho, rho, rtol=1e-9)
    np.testing.assert_allclose(modes.cumulative_variance, cumulative, rtol=1e-9)
    assert modes.text_point == "llm_hidden_16"
    assert modes.rows == "pooled"
    assert modes.certificate.mode == "exact"
    assert modes.considered.tolist() == list(range(10))
    np.testing.assert_array_equal(modes.ms, np.flatnonzero(rho[:10] < 0.5))
    assert modes.ms_variance == pytest.approx(values[:10][rho[:10] < 0.5].sum() / values[:10].sum())
    assert modes.to_json()["config"]["law"] == "paper"


@pytest.mark.filterwarnings("ignore:.*rows for.*:UserWarning", "ignore:at least.*:UserWarning")
def test_paper_law_with_fewer_rows_than_dimensions_divides_by_the_clamp(write: Write) -> None:
    modal, text = normal(20, [1.0] * 40, 1), normal(30, [1.0] * 40, 2)
    modes = align(write({"adapter_output": modal}), write({"llm_final": text}), law="paper")
    values, _, rho, _ = published(modal, text)
    np.testing.assert_allclose(modes.eigenvalues[:19], values[:19], rtol=1e-9)
    np.testing.assert_allclose(modes.rho[:19], rho[:19], rtol=1e-9)
    assert modes.text_point == "llm_final"
    assert modes.rank == 19
    assert len(modes.considered) == 40
    # The vectors of the null space are arbitrary, but each one's rho divides by 1e-10.
    sigma_t = np.cov(text.astype(np.float64).T)
    null = modes.U[:, 25]
    assert modes.rho[25] == pytest.approx(null @ sigma_t @ null / 1e-10, rel=1e-9)
    assert any("divides by 1e-10" in warning for warning in modes.warnings)


def test_the_same_rows_are_fully_aligned(write: Write) -> None:
    rows = normal(400, np.geomspace(4, 0.5, 12), 3, rotation(12))
    modes = align(write({"adapter_output": rows}), write({"text_embedding": rows}))
    np.testing.assert_allclose(modes.rho, 1, atol=1e-5)
    np.testing.assert_allclose([modes.rho_low, modes.rho_high], 1, atol=1e-5)
    assert len(modes.ms) == 0
    assert modes.trace_ratio == pytest.approx(1)
    assert modes.ms_variance == 0
    assert modes.paired


def test_a_planted_modality_specific_subspace_is_found(write: Write) -> None:
    basis = rotation(16, 4)
    modal_scales = np.array([6.0, 5.0, 4.0] + [2.0] * 5 + [1.0] * 8)
    text_scales = np.array([0.05, 0.05, 0.05] + [2.0] * 5 + [1.5] * 8)
    modal = normal(4000, modal_scales, 5, basis, mean=7)
    text = normal(4000, text_scales, 6, basis)
    modes = align(
        write({"adapter_output": modal}), write({"text_embedding": text}, ids=[f"t{i}" for i in range(4000)])
    )
    assert modes.ms.tolist() == [0, 1, 2]
    overlap = np.linalg.svd(modes.U[:, modes.ms].T @ basis[:, :3], compute_uv=False)
    assert overlap.min() > 0.995
    share = (modal_scales[:3] ** 2).sum() / (modal_scales**2).sum()
    assert modes.ms_variance == pytest.approx(share, abs=0.02)
    assert not modes.paired
    assert len(modes.undecided) == 0


def test_fewer_rows_than_dimensions_leaves_modes_without_rho(write: Write) -> None:
    modal, text = normal(15, [1.0] * 32, 1, mean=2), normal(50, [1.0] * 32, 2)
    with (
        pytest.warns(UserWarning, match=r"50 text pooled rows for 32 dimensions"),
        pytest.warns(UserWarning, match=r"15 modal pooled rows for 32 dimensions.*n/d = 0.47.*token rows"),
    ):
        modes = align(write({"adapter_output": modal}), write({"text_embedding": text}))
    assert modes.rank == modes.certificate.rank == 14
    assert modes.considered.tolist() == list(range(14))
    assert np.isfinite(modes.rho[:14]).all()
    assert np.isnan(modes.rho[14:]).all()
    assert modes.n_over_d == 15 / 32
    data = modes.to_json()
    assert len(data["modes"]) == 14
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("mean", [0.0, 20.0])
def test_rounding_to_fp16_makes_no_modes(write: Write, mean: float) -> None:
    basis = rotation(24, 8)[:, :5]
    modal = normal(2000, [8, 4, 2, 1, 0.5], 1) @ basis.T.astype(np.float32) + np.float32(mean)
    text = normal(2000, [1.0] * 24, 2)
    modes = align(
        write({"adapter_output": modal}, dtype="float16"),
        write({"text_embedding": text}, dtype="float16"),
        precision="exact",
    )
    assert modes.rank == 5
    assert (modes.eigenvalues[5:] > 0).sum() > 10  # the rounding is there, and is not counted
    assert modes.floor[10] > modes.eigenvalues[10] > modes.floor[10] / 10


def test_a_rank_tolerance_replaces_the_estimated_floor(write: Write) -> None:
    rows = normal(500, np.geomspace(10, 0.1, 8), 1)
    modes = align(write({"adapter_output": rows}), write({"text_embedding": rows}), rank_tol=0.01)
    assert modes.rank == (modes.eigenvalues > 0.01 * modes.eigenvalues[0]).sum() < 8


def test_rotating_the_basis_rotates_only_the_vectors(write: Write) -> None:
    scales, turn = np.geomspace(5, 0.5, 10), rotation(10, 3)
    modal, text = normal(900, scales, 1), normal(800, scales[::-1].copy(), 2)
    plain = align(write({"adapter_output": modal}), write({"text_embedding": text}), precision="exact")
    turned = align(
        write({"adapter_output": (modal @ turn.T).astype(np.float32)}),
        write({"text_embedding": (text @ turn.T).astype(np.float32)}),
        precision="exact",
    )
    np.testing.assert_allclose(turned.eigenvalues, plain.eigenvalues, rtol=1e-5)
    np.testing.assert_allclose(turned.rho, plain.rho, rtol=1e-5)
    np.testing.assert_allclose(np.abs((turn.T @ turned.U * plain.U).sum(0)), 1, atol=1e-4)


def test_a_difference_in_scale_is_said(write: Write) -> None:
    rows = normal(100, [2, 1], 1)
    modes = align(write({"adapter_output": rows}), write({"text_embedding": rows / 100}))
    assert modes.trace_ratio == pytest.approx(1e-4, rel=1e-4)
    np.testing.assert_allclose(modes.rho, 1e-4, rtol=1e-4)
    assert "0.0001 times the modal one" in " ".join(modes.notes())


def test_signs_of_the_vectors_are_fixed(write: Write) -> None:
    rows = normal(200, np.geomspace(4, 1, 6), 1, rotation(6))
    modes = align(write({"adapter_output": rows}), write({"text_embedding": rows}))
    largest = np.abs(modes.U).argmax(0)
    assert (modes.U[largest, np.arange(6)] > 0).all()
    np.testing.assert_allclose(modes.U.T @ modes.U, np.eye(6), atol=1e-12)


def test_token_rows_are_used_where_both_stores_have_them(write: Write) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 150)
    tokens = [normal(t, [3, 2, 1, 1], i) for i, t in enumerate(lengths)]
    pooled = np.stack([t.mean(0) for t in tokens])
    both = {"adapter_output": tokens, "other": pooled}
    store = write(both)
    text = write({"text_embedding": tokens, "pooled_only": pooled})
    modes = align(store, text)
    assert modes.rows == "tokens"
    assert (modes.n, modes.n_samples) == (lengths.sum(), 150)
    np.testing.assert_allclose(
        modes.eigenvalues,
        np.linalg.eigvalsh(np.cov(np.concatenate(tokens).astype(np.float64).T))[::-1],
        rtol=1e-5,
    )
    with pytest.raises(StoreError, match=r"tokens or pooled rows are needed on both sides.*rows=both"):
        align(store, text, text_point="pooled_only")
    with pytest.raises(StoreError, match="pooled rows are needed on both sides"):
        align(store, text, rows="pooled")


def test_tokens_of_one_sample_are_not_independent(write: Write) -> None:
    """Rows that repeat within a sample hold no more than the sample: the interval must not shrink."""
    pooled = normal(200, [3, 1], 1)
    repeated = [np.repeat(row[None], 30, axis=0) for row in pooled]
    text = normal(200, [1, 1], 2)
    repeated_text = [np.repeat(row[None], 30, axis=0) for row in text]
    once = align(write({"adapter_output": pooled}), write({"text_embedding": text}))
    many = align(write({"adapter_output": repeated}), write({"text_embedding": repeated_text}))
    np.testing.assert_allclose(many.rho_high / many.rho_low, once.rho_high / once.rho_low, rtol=0.02)


def test_shrinkage_is_the_stated_combination(write: Write) -> None:
    modal, text = normal(300, [3, 2, 1], 1), normal(300, [1, 2, 3], 2)
    stores = write({"adapter_output": modal}), write({"text_embedding": text})
    plain, shrunk = align(*stores), align(*stores, shrinkage=0.25)
    targets = [np.trace(np.cov(x.astype(np.float64).T)) / 3 for x in (modal, text)]
    np.testing.assert_allclose(shrunk.eigenvalues, 0.75 * plain.eigenvalues + 0.25 * targets[0], rtol=1e-6)
    np.testing.assert_allclose(
        shrunk.text_variance, 0.75 * plain.text_variance + 0.25 * targets[1], rtol=1e-6
    )
    np.testing.assert_allclose(shrunk.rho, shrunk.text_variance / shrunk.eigenvalues)
    assert ((shrunk.rho_low < shrunk.rho) & (shrunk.rho < shrunk.rho_high)).all()
    assert "shrunk towards" in " ".join(shrunk.notes())


def test_bootstrap_and_jackknife_agree_and_none_computes_nothing(write: Write) -> None:
    stores = (
        write({"adapter_output": normal(600, [3, 1], 1)}),
        write({"text_embedding": normal(600, [1, 1], 2)}),
    )
    jack = align(*stores, groups=60)
    boot = align(*stores, groups=60, interval="bootstrap")
    none = align(*stores, interval=None)
    widths = [np.log(m.rho_high / m.rho_low) for m in (jack, boot)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.2)
    assert np.isnan(none.rho_low).all()
    assert none.table().rows[0][-2] is None
    np.testing.assert_array_equal(none.rho, jack.rho)


def test_saved_modes_come_back_whole(write: Write, tmp_path: Path) -> None:
    modes = align(
        write({"adapter_output": normal(60, [3, 1], 1)}), write({"text_embedding": normal(60, [1, 1], 2)})
    )
    again = Modes.load(modes.save(tmp_path / "modes.safetensors"))
    for name in ("eigenvalues", "U", "rho", "rho_low", "floor", "considered"):
        np.testing.assert_array_equal(getattr(again, name), getattr(modes, name))
    assert again.config == modes.config
    assert again.certificate == modes.certificate
    assert again.to_json() == modes.to_json()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    other = tmp_path / "other.safetensors"
    save_file({"U": np.eye(2)}, other)
    with pytest.raises(
        ValueError, match=r"expected a modegap.modes/1 file written by Modes.save, got format None"
    ):
        Modes.load(other)
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a safetensors file of modes"):
        Modes.load(other)


def test_reports_say_what_was_done(write: Write) -> None:
    modes = align(
        write({"adapter_output": normal(90, [3, 1], 1)}), write({"text_embedding": normal(90, [1, 1], 2)})
    )
    row = dict(zip([c.title for c in modes.table().headers], modes.table().rows[0], strict=True))
    assert row["ρ < 0.5"] == "1/2"
    assert row["ρ of the first mode"] == pytest.approx(modes.rho[0])
    assert [r[-1] for r in modes.mode_table().rows] == ["MS", "TA"]
    chart = modes.figure().to_dict()
    drawn = json.dumps(chart)
    assert all(f'"field": "{name}"' in drawn for name in ("mode", "rho", "rho_low", "rho_high", "eigenvalue"))
    assert "config" not in chart or "mark" not in chart["config"]
    assert "<svg" in modes._repr_html_()
    assert set(modes.certificate.store_hashes) == {"modal", "text"}


def test_mistakes_name_the_remedy(write: Write) -> None:
    modal = write({"adapter_output": normal(30, [1, 1], 1)})
    text = write({"text_embedding": normal(30, [1, 1], 2), "wide": normal(30, [1, 1, 1], 2)})
    with pytest.raises(
        StoreError, match=r"modal store: unknown hook point 'adaptor_output', did you mean 'adapter"
    ):
        align(modal, text, point="adaptor_output")
    with pytest.raises(StoreError, match="text store: unknown hook point 'text_embeding'"):
        align(modal, text, text_point="text_embeding")
    with pytest.raises(ValueError, match="2 wide, wide of the text store 3: two spaces; take"):
        align(modal, text, text_point="wide")
    with pytest.raises(StoreError, match="text store has no text_embedding, only adapter_output"):
        align(modal, modal)
    with pytest.raises(StoreError, match="paper's law compares with llm_hidden_16 or llm_final"):
        align(modal, text, law="paper")
    with pytest.raises(ValueError, match="did you mean 'threshold'"):
        align(modal, text, treshold=0.4)
    constant = write({"adapter_output": np.ones((30, 2), np.float32)})
    with pytest.raises(ValueError, match="30 modal rows are all the same"):
        align(constant, text)


def test_fewer_than_two_complete_rows_are_refused(write: Write, tmp_path: Path) -> None:
    plan = StorePlan({"adapter_output": PointPlan(2, "pooled")}, ["a", "b"])
    empty = ActivationStore.create(tmp_path / "empty.zarr", plan)
    text = write({"text_embedding": normal(30, [1, 1], 2)})
    with pytest.raises(StoreError, match=r"modal store has 0 complete pooled rows at adapter_output.*resume"):
        align(empty, text)


def test_an_unfinished_store_is_used_up_to_its_first_gap_and_says_so(write: Write, tmp_path: Path) -> None:
    rows = normal(4000, [2, 1], 1)
    plan = StorePlan(
        {"adapter_output": PointPlan(2, "pooled", dtype="float32")}, [f"s{i}" for i in range(200_000)]
    )
    store = ActivationStore.create(tmp_path / "part.zarr", plan)
    chunk = store.points["adapter_output"].pooled_chunk_rows
    with store.writer() as writer:
        for i in range(chunk + 100):
            writer.put(i, {"adapter_output": SampleRows(pooled=rows[i % 4000])})
    text = write({"text_embedding": normal(100, [1, 1], 2)})
    with pytest.warns(UserWarning, match=rf"modal store is not finished: only the first {chunk} of 200000"):
        modes = align(ActivationStore.open(tmp_path / "part.zarr"), text)
    assert modes.n == modes.n_samples == chunk


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "papr"}, "law: got 'papr'"),
        ({"rows": "token"}, "rows: got 'token'"),
        ({"threshold": 0}, "threshold: got 0"),
        ({"shrinkage": 1.5}, r"shrinkage: got 1.5, expected a number in \[0, 1\] or 'oas'"),
        ({"shrinkage": "lw"}, "shrinkage: got 'lw'"),
        ({"groups": 1}, "groups: got 1"),
        ({"level": 95}, "level: got 95"),
        ({"rank_tol": 2}, "rank_tol: got 2"),
        ({"law": "paper", "rows": "tokens"}, "law='paper' fixes rows='pooled', got 'tokens'"),
        ({"law": "paper", "precision": "fast"}, "law='paper' fixes precision='exact'"),
        ({"law": "paper", "shrinkage": "oas"}, "law='paper' fixes shrinkage"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig(**options)
