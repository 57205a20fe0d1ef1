from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from sklearn.preprocessing import StandardScaler

from modegap.analyses.probe import ProbeConfig, ProbeResult, probe
from modegap.analyses.probe.grid import _Given, _point
from modegap.analyses.probe.intervals import wilson_interval
from modegap.analyses.probe.labels import categories, classes_of, first_top_word, tertiles
from modegap.analyses.probe.pooled import pooled_rows
from modegap.analyses.saved import load_result, save_result
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from modegap.stores.errors import StoreError

N, WIDTH = 150, 10


def make(
    path: Path, points: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[Any]]
) -> ActivationStore:
    count = len(next(iter(points.values())))
    plan = StorePlan(
        {name: PointPlan(rows.shape[1], "pooled") for name, rows in points.items()},
        [f"s{i}" for i in range(count)],
        labels,
    )
    with ActivationStore.create(path, plan).writer() as writer:
        for i in range(count):
            writer.put(i, {name: SampleRows(pooled=rows[i]) for name, rows in points.items()})
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """Colour is easy at the adapter and half drowned at the end; noise is noise."""
    rng = np.random.default_rng(0)
    colour = np.arange(N) % 3
    base = rng.standard_normal((N, WIDTH))
    clear, dim = base.copy(), base.copy()
    clear[:, :3] += 3 * np.eye(3)[colour]
    dim[:, :3] += 1.2 * np.eye(3)[colour]
    return {"llm_final": dim.astype(np.float32), "adapter_output": clear.astype(np.float32)}


@pytest.fixture(scope="module")
def store(rows: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    rng = np.random.default_rng(1)
    labels = {
        "colour": [["red", "green", "blue"][i % 3] for i in range(N)],
        "noise": rng.integers(0, 2, N).tolist(),
        "same": ["x"] * N,
        "partly": [None if i % 5 == 0 else ["a", "b"][i % 2] for i in range(N)],
        "lonely": ["only once"] + [["a", "b"][i % 2] for i in range(N - 1)],
        "many": [f"class {i // 2}" for i in range(N)],
        "size": rng.random(N).tolist(),
        "text": [f"{['one', 'two', 'three'][i % 3]} thing {i}" for i in range(N)],
    }
    return make(tmp_path_factory.mktemp("probe") / "s.zarr", rows, labels)


@pytest.fixture(scope="module")
def result(store: ActivationStore) -> ProbeResult:
    return probe(store)


def direct(x: np.ndarray, y: np.ndarray, seeds: Sequence[int]) -> tuple[list[float], list[float]]:
    accuracy, f1 = [], []
    for seed in seeds:
        a, b, ya, yb = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
        scaler = StandardScaler().fit(a)
        model = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(a), ya)
        guess = model.predict(scaler.transform(b))
        accuracy.append(float((guess == yb).mean()))
        f1.append(float(f1_score(yb, guess, average="macro", zero_division=0)))
    return accuracy, f1


@pytest.mark.parametrize("point", ["adapter_output", "llm_final"])
@pytest.mark.parametrize("label", ["colour", "noise"])
def test_scores_are_those_of_a_plain_loop(
    result: ProbeResult, store: ActivationStore, rows: dict[str, np.ndarray], point: str, label: str
) -> None:
    stored = rows[point].astype(np.float16).astype(np.float32)
    y = np.array(store.labels[label].values)
    accuracy, f1 = direct(stored, y, [42, 43, 44, 45, 46])
    cell = result.cell(point, label)
    assert [s.accuracy for s in cell.scores] == accuracy
    np.testing.assert_allclose([s.macro_f1 for s in cell.scores], f1)
    assert cell.accuracy == pytest.approx(np.mean(accuracy))
    assert cell.accuracy_std == pytest.approx(np.std(accuracy, ddof=1))
    counts = np.unique(y, return_counts=True)[1]
    assert cell.chance == 1 / len(counts)
    assert cell.majority == counts.max() / N


def test_paper_law_is_the_published_recipe(store: ActivationStore, rows: dict[str, np.ndarray]) -> None:
    x = rows["llm_final"].astype(np.float16).astype(np.float32)
    y = np.array(store.labels["colour"].values)
    expected = []
    splitter = StratifiedShuffleSplit(n_splits=5, train_size=0.8, random_state=42)
    for train, test in splitter.split(x, y):
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=1 / (1e-4 * int(N * 0.8)), max_iter=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(scaler.transform(x[train]), y[train])
        expected.append(float((model.predict(scaler.transform(x[test])) == y[test]).mean()))
    found = probe(store, ["llm_final"], ["colour"], law="paper")
    assert [s.accuracy for s in found.cell("llm_final", "colour").scores] == expected
    assert "the paper's scripts" in found.table().notes[0]


def test_threads_change_nothing(store: ActivationStore, result: ProbeResult) -> None:
    two = probe(store, labels=["colour"], n_jobs=2)
    for point in two.points:
        assert two.cell(point, "colour").scores == result.cell(point, "colour").scores


def test_labels_that_cannot_be_probed_leave_a_message_and_the_rest_goes_on(result: ProbeResult) -> None:
    same = result.cell("adapter_output", "same")
    assert same.message == "only the class 'x' with two or more samples; a probe needs two classes"
    assert same.accuracy is None
    assert not same.scores
    many = result.cell("adapter_output", "many")
    assert "150 samples for 75 classes leave 30 to test on" in many.message
    assert "at least 375 samples" in many.message
    partly = result.cell("adapter_output", "partly")
    assert partly.n == 120
    assert "samples without a value, left out: 30" in partly.notes
    lonely = result.cell("adapter_output", "lonely")
    assert lonely.n == N - 1
    assert lonely.classes == 2
    assert "classes of a single sample, left out: 1" in lonely.notes
    assert result.cell("adapter_output", "colour").accuracy > 0.9


def test_retention_both_ways(result: ProbeResult) -> None:
    retention = {r.label: r for r in result.retention()}
    before, after = (result.cell(p, "colour").accuracy for p in ("adapter_output", "llm_final"))
    assert before is not None
    assert after is not None
    assert before > after > 0.4
    assert retention["colour"].ratio == pytest.approx(100 * after / before)
    assert retention["colour"].above_chance == pytest.approx(100 * (after - 1 / 3) / (before - 1 / 3))
    assert "same" not in retention
    noise = result.cell("adapter_output", "noise")
    assert noise.accuracy is not None
    assert noise.accuracy_std is not None
    assert noise.accuracy - 0.5 < noise.accuracy_std
    assert retention["noise"].above_chance is None
    assert retention["noise"].ratio > 0


def test_points_are_in_the_order_of_the_pipeline_and_labels_are_found(result: ProbeResult) -> None:
    assert result.points == ("adapter_output", "llm_final")
    assert set(result.labels) == {
        "colour", "noise", "same", "partly", "lonely", "many", "size", "lexical",
    }  # fmt: skip
    assert result.cell("llm_final", "size").classes == 3
    assert result.certificate.count == N
    assert result.certificate.width == WIDTH


def test_classes_of_each_kind_of_label() -> None:
    found = categories(["b", None, "a", " ", "b", float("nan")])
    assert found.codes.tolist() == [1, -1, 0, -1, 1, -1]
    assert found.names == ("a", "b")
    assert classes_of("number", [3, 1, 3]).names == ("1", "3")
    thirds = tertiles([*range(30), None])
    assert np.bincount(thirds.codes[:-1]).tolist() == [10, 10, 10]
    assert thirds.codes[-1] == -1
    words = first_top_word(["The cat's mat", "a cat", "THE dog", None, "42"], top=2)
    assert words.names == ("the", "cat")
    assert words.codes.tolist() == [0, 1, 0, -1, -1]


def test_reports(result: ProbeResult) -> None:
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    cell = next(c for c in data["cells"] if (c["point"], c["label"]) == ("llm_final", "colour"))
    assert len(cell["scores"]) == 5
    assert cell["accuracy"] == result.cell("llm_final", "colour").accuracy
    table = result.table()
    assert len(table.rows) == len(result.cells) == 16
    final = next(row for row in table.rows if row[:2] == ("colour", "llm_final"))
    assert final[-2] == pytest.approx(result.retention()[0].ratio)
    assert any(note.startswith("same: only the class 'x'") for note in table.notes)
    chart = result.figure().to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["line", "line", "rule", "point"]
    drawn = (
        {(v["label"], v["point"]) for v in chart["data"]["values"]} if "values" in chart["data"] else set()
    )
    assert ("same", "llm_final") not in drawn
    assert "<svg" in result._repr_html_()


def test_mistakes_name_the_remedy(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unknown label 'color', did you mean 'colour'"):
        probe(store, labels=["color"])
    with pytest.raises(StoreError, match="unknown hook point 'lm_final', did you mean 'llm_final'"):
        probe(store, points=["lm_final"])
    with pytest.raises(ValueError, match="no option 'c'"):
        probe(store, c=2)
    plan = StorePlan({"llm_final": PointPlan(2, "tokens", np.array([1, 1]))}, ["a", "b"], {"k": [0, 1]})
    tokens = ActivationStore.create(tmp_path / "t.zarr", plan)
    with pytest.raises(StoreError, match=r"llm_final has token rows only.*rows=pooled or rows=both"):
        probe(tokens, ["llm_final"])
    with pytest.raises(StoreError, match="no hook point of this store has pooled rows"):
        probe(tokens)
    bare = ActivationStore.create(
        tmp_path / "b.zarr", StorePlan({"llm_final": PointPlan(2, "pooled")}, ["a"])
    )
    with pytest.raises(StoreError, match="no labels to probe"):
        probe(bare)
    named = StorePlan({"llm_final": PointPlan(2, "pooled")}, ["a", "b"], {"k": [0, 1]})
    with pytest.raises(StoreError, match="no complete sample yet: resume"):
        probe(ActivationStore.create(tmp_path / "e.zarr", named))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C: got 0"),
        ({"seeds": ()}, "seeds: got none"),
        ({"test_fraction": 1.0}, "test_fraction: got 1.0"),
        ({"n_jobs": 0}, "n_jobs: got 0"),
        ({"law": "paper", "C": 2.0}, "law='paper' fixes C"),
        ({"law": "text"}, "law: got 'text'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(**options)


def test_no_group_is_on_both_sides_of_a_split() -> None:
    from modegap.analyses.probe.splits import splits

    rng = np.random.default_rng(3)
    groups = rng.integers(0, 60, 600)
    codes = groups % 3
    config = ProbeConfig(group="scan")
    seen = list(splits(codes, config, groups))
    assert [seed for seed, _ in seen] == list(config.seeds)
    for _, (train, test) in seen:
        assert not set(groups[train]) & set(groups[test])
        assert abs(len(test) / len(codes) - config.test_fraction) < 0.05
    assert len({tuple(test) for _, (_, test) in seen}) == len(seen)


def test_groups_take_away_what_only_recognises_the_group(tmp_path: Path) -> None:
    # every group has its own direction, and its class says nothing else: without groups a probe seems to work
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(40), 10)
    codes = rng.permutation(np.arange(40) % 2)[groups]
    x = 3 * rng.standard_normal((40, 60))[groups] + rng.standard_normal((400, 60))
    store = make(
        tmp_path / "g.zarr", {"adapter_output": x}, {"kind": [str(c) for c in codes], "scan": groups.tolist()}
    )
    loose = probe(store, labels=["kind"], seeds=(1, 2, 3)).cell("adapter_output", "kind")
    tight = probe(store, labels=["kind", "scan"], seeds=(1, 2, 3), group="scan")
    assert loose.accuracy is not None
    assert loose.accuracy > 0.95
    found = tight.cell("adapter_output", "kind").accuracy
    assert found is not None
    assert found < 0.75
    assert "group" in tight.cell("adapter_output", "scan").message


def test_groups_that_cannot_be_split_say_so(tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((40, 4))
    store = make(tmp_path / "g.zarr", {"adapter_output": x}, {"kind": ["a", "b"] * 20, "who": [0, 1] * 20})
    cell = probe(store, labels=["kind"], group="who").cell("adapter_output", "kind")
    assert not cell.scores
    assert "groups" in cell.message
    with pytest.raises(StoreError, match="who"):
        probe(store, labels=["kind"], group="whom")


def test_information_and_selectivity(result: ProbeResult, store: ActivationStore) -> None:
    cell = result.cell("adapter_output", "colour")
    assert cell.entropy == pytest.approx(np.log(3))
    assert cell.information is not None
    assert cell.information == pytest.approx(np.log(3) - np.mean([s.cross_entropy for s in cell.scores]))
    assert 0.5 < cell.information < np.log(3)
    noise = result.cell("adapter_output", "noise")
    assert noise.information is not None
    assert abs(noise.information) < 0.1
    assert cell.selectivity is None
    options: dict[str, Any] = {"labels": ["colour", "partly"], "points": ["adapter_output"], "seeds": (1, 2)}
    shuffled = probe(store, control="samples", calibration=0, **options)
    found = shuffled.cell("adapter_output", "colour")
    assert found.control is not None
    assert found.control < 0.6
    assert found.selectivity == pytest.approx(found.accuracy - found.control)
    assert found.cross_entropy is None
    by_kind = probe(store, control="partly", calibration=0, **options)
    assert by_kind.cell("adapter_output", "colour").control is not None
    assert "its own" in by_kind.cell("adapter_output", "partly").message
    names = [getattr(c, "name", c) for c in shuffled.table().columns]
    assert "selectivity" in names
    assert "information" not in names
    with pytest.raises(StoreError, match="unknown label 'sampels'"):
        probe(store, control="sampels")


def test_intervals_of_accuracy_and_retention(result: ProbeResult, store: ActivationStore) -> None:
    cell = result.cell("llm_final", "colour")
    low, high = cell.interval(0.95) or (0, 0)
    assert low < cell.accuracy < high
    # s sqrt(1/5 + 30/120) t(0.975, 4)
    assert high - cell.accuracy == pytest.approx(cell.accuracy_std * np.sqrt(0.45) * 2.776445, rel=1e-6)
    kept = next(r for r in result.retention() if r.label == "colour")
    assert kept.low < kept.ratio < kept.high
    assert kept.above_low < kept.above_chance < kept.above_high
    assert result.retention_table().rows[0][:4] == ("colour", kept.ratio, kept.low, kept.high)
    one = probe(store, ["llm_final"], ["colour"], seeds=(1,)).cell("llm_final", "colour")
    assert one.interval() == pytest.approx(wilson_interval(one.accuracy, 30, 0.95))


def test_rows_that_are_not_finite_leave_a_message(rows: dict[str, np.ndarray]) -> None:
    # a store refuses such rows, so only a damaged one yields them
    broken = rows["llm_final"].copy()
    broken[3, 4] = np.nan
    broken[7, [4, 5]] = [np.inf, -np.inf]
    classes = {
        "good": categories(["a", "b"] * (N // 2)),
        "spared": categories([None] * 10 + ["a", "b"] * (N // 2 - 5)),
    }
    config = ProbeConfig(seeds=(1,), calibration=0)
    given = _Given(N, classes, config, None, None)
    found = {label: cell for label, cell, _ in _point(broken, "llm_final", list(classes), given, {})}
    assert "2 of 10 channels hold NaN or infinities" in found["good"].message
    assert not found["good"].scores
    assert found["spared"].accuracy is not None


def test_the_solver_is_on_the_certificate_and_results_come_back(
    store: ActivationStore, tmp_path: Path
) -> None:
    found = probe(store, labels=["colour"], solver="batched", seeds=(1, 2), control="samples")
    path = found.certificate.kernel_paths["probe"]
    assert path == {"name": "batched", "why": "asked for"}
    assert found.cell("llm_final", "colour").solver == "batched"
    assert found.cell("llm_final", "colour").scores[0].audit is not None
    assert load_result(save_result(found, tmp_path / "p.json")) == found
    with pytest.raises(ValueError, match="device: got 'nowhere'"):
        probe(store, device="nowhere")


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, dict[str, np.ndarray]]:
    """Token and pooled rows; the class is in the image tokens, what text tokens hold is noise around 5."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, 9, N)
    points = {
        "both": PointPlan(WIDTH, "both", lengths, "float32", stream="llm"),
        "alone": PointPlan(WIDTH, "tokens", lengths, "float32", stream="llm"),
    }
    labels = {"colour": [["red", "green", "blue"][i % 3] for i in range(N)]}
    plan = StorePlan(points, [f"s{i}" for i in range(N)], labels)
    path = tmp_path_factory.mktemp("ragged") / "s.zarr"
    means: dict[str, list[np.ndarray]] = {"all": [], "modality": []}
    with ActivationStore.create(path, plan).writer() as writer:
        for i, length in enumerate(lengths.tolist()):
            modality = np.ones(length, np.uint8)
            modality[1 : 1 + length // 2] = 2
            rows = rng.standard_normal((length, WIDTH)) * 0.5
            rows[modality == 2, i % 3] += 2
            rows[modality == 1] += 5 * rng.standard_normal((1, WIDTH))
            rows = rows.astype(np.float32)
            means["all"].append(rows.mean(axis=0))
            means["modality"].append(rows[modality == 2].astype(np.float64).mean(axis=0))
            columns = {"llm": (np.arange(length, dtype=np.int32), modality)}
            writer.put(i, {"both": SampleRows(rows, rows.mean(axis=0)), "alone": SampleRows(rows)}, columns)
    return ActivationStore.open(path), {name: np.array(found, np.float32) for name, found in means.items()}


def test_media_tokens_are_pooled_from_the_stored_token_rows(
    ragged: tuple[ActivationStore, dict[str, np.ndarray]],
) -> None:
    store, means = ragged
    y = np.array(store.labels["colour"].values)
    found = probe(store, pool="modality")
    assert found.pool == "modality"
    assert found.points == ("both", "alone")
    for point in found.points:
        scores = [score.accuracy for score in found.cell(point, "colour").scores]
        assert scores == direct(means["modality"], y, [42, 43, 44, 45, 46])[0]
    stored = probe(store)
    assert (stored.pool, stored.points) == ("all", ("both",))
    tokens = probe(store, ["alone"], pool="all")
    assert tokens.pool == "all"
    assert tokens.cell("alone", "colour").accuracy == pytest.approx(
        np.mean(direct(means["all"], y, [42, 43, 44, 45, 46])[0])
    )
    assert (found.cell("both", "colour").accuracy or 0) > (stored.cell("both", "colour").accuracy or 1)
    np.testing.assert_allclose(pooled_rows(store, "alone", N, "all"), means["all"], rtol=1e-6, atol=1e-6)
    assert pooled_rows(store, "both", 7, "modality").shape == (7, WIDTH)


def test_a_pooling_that_is_not_there_says_how_to_get_it(
    store: ActivationStore, ragged: tuple[ActivationStore, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"no hook point of this store has pooled rows \(pool=modality\)"):
        probe(store, pool="modality")
    with pytest.raises(StoreError, match="extract with rows=both, or with pool=modality"):
        probe(store, ["llm_final"], pool="modality")
    with pytest.raises(StoreError, match="or give pool=all"):
        probe(ragged[0], ["alone"])
    with pytest.raises(ValueError, match="pool: got 'media'"):
        ProbeConfig(pool="media")  # type: ignore[arg-type]
    plan = StorePlan(
        {"llm_final": PointPlan(4, "tokens", np.full(6, 2), "float32", stream="llm")},
        list("abcdef"),
        {"x": ["u", "v"] * 3},
    )
    path = tmp_path / "text.zarr"
    with ActivationStore.create(path, plan).writer() as writer:
        for i in range(6):
            columns = {"llm": (np.zeros(2, np.int32), np.ones(2, np.uint8))}
            writer.put(i, {"llm_final": SampleRows(np.ones((2, 4), np.float32))}, columns)
    with pytest.raises(StoreError, match="6 of 6 samples, 'a' first, have no media tokens at llm_final"):
        probe(path, pool="modality")
