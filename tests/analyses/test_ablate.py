from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modegap.analyses.ablate import AblateConfig, AblationResult, ablate
from modegap.analyses.ablate.statistics import paired
from modegap.analyses.ablate.subsets import subsets_of
from modegap.analyses.align import Modes, align
from modegap.engine.datasets.base import Sample
from modegap.engine.models import LoadedModel, adopt
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

WIDTH = 8
WORDS = [f"w{i}" for i in range(12)]
MODAL_SCALES = [10, 9, 8, 7, 6, 5, 4, 3]
RHO = [0.1, 2.0, 0.2, 2.0, 2.0, 0.3, 2.0, 0.4]  # modes 0, 2, 5, 7 are modality-specific


class Readout(nn.Module):
    """Logits linear in the adapter's output, deaf to coordinates 0 and 2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(len(WORDS) + 2, WIDTH)
        self.adapter = nn.Identity()
        self.head = nn.Linear(WIDTH, len(WORDS) + 2, bias=False)
        with torch.no_grad():
            self.head.weight[:, [0, 2]] = 0

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.head(self.adapter(self.embed(input_ids))))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*WORDS, "[PAD]", "[UNK]"])}, unk_token="[UNK]")
    )
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    return adopt(Readout().eval(), tokenizer, name="readout", points={"adapter_output": "adapter"})


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [Sample(f"s{i}", " ".join(rng.choice(WORDS, size=rng.integers(3, 9)))) for i in range(24)]


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Modes:
    """Modes that are the coordinates, exactly: rows are +-s_k e_k."""
    stores = []
    for point, scales in (
        ("adapter_output", np.array(MODAL_SCALES, dtype=float)),
        ("text_embedding", np.array(MODAL_SCALES) * np.sqrt(RHO)),
    ):
        axes = np.diag(scales).astype(np.float32)
        rows = np.concatenate([axes, -axes] * 3)
        plan = StorePlan(
            {point: PointPlan(WIDTH, "pooled", dtype="float32")}, [f"s{i}" for i in range(len(rows))]
        )
        path = tmp_path_factory.mktemp("stores") / f"{point}.zarr"
        with ActivationStore.create(path, plan).writer() as writer:
            for i, row in enumerate(rows):
                writer.put(i, {point: SampleRows(pooled=row)})
        stores.append(ActivationStore.open(path))
    found = align(*stores)
    np.testing.assert_array_equal(np.abs(found.U), np.eye(WIDTH))
    assert found.ms.tolist() == [0, 2, 5, 7]
    return found


def direct_nll(loaded: LoadedModel, sample: Sample, removed: list[int]) -> float:
    """The loss with the coordinates set to zero, without hooks or kernels."""
    model = loaded.model
    ids = [WORDS.index(word) for word in sample.text.split()]
    with torch.no_grad():
        z = model.embed(torch.tensor(ids))  # type: ignore[operator]
        z[:, removed] = 0
        logits = z @ model.head.weight.T  # type: ignore[operator, union-attr]
        return float(nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])))


def test_a_subspace_the_loss_ignores_changes_nothing_at_all(
    loaded: LoadedModel, samples: list[Sample], modes: Modes
) -> None:
    result = ablate(loaded, samples, modes, ["0,2", "1"], batch_size=5)
    ignored = result.condition("0,2")
    np.testing.assert_array_equal(ignored.draws[0].loss, result.baseline)
    assert ignored.change.mean_delta == ignored.change.percent == 0
    assert ignored.change.percent_low == ignored.change.percent_high == 0
    assert ignored.change.t is None
    assert ignored.change.p is None
    assert result.condition("1").change.mean_delta != 0


def test_losses_are_those_of_the_edited_hidden_states(
    loaded: LoadedModel, samples: list[Sample], modes: Modes
) -> None:
    result = ablate(loaded, samples, modes, ["ms", "ta", "random*3", "top*2"], batch_size=7)
    np.testing.assert_allclose(result.baseline, [direct_nll(loaded, s, []) for s in samples], rtol=1e-5)
    for condition in result.conditions:
        for draw in condition.draws:
            expected = [direct_nll(loaded, s, list(draw.subset.indices)) for s in samples]
            np.testing.assert_allclose(draw.loss, expected, rtol=1e-5)
    assert result.ids == tuple(s.id for s in samples)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_variance_removed_is_a_share_of_the_eigenvalues(
    loaded: LoadedModel, samples: list[Sample], modes: Modes
) -> None:
    squares = np.array(MODAL_SCALES) ** 2
    result = ablate(loaded, samples, modes, ["ms", "top*3"], n_samples=4)
    assert result.n == 4
    assert result.condition("ms").variance == pytest.approx(squares[[0, 2, 5, 7]].sum() / squares.sum())
    assert result.condition("top*3").variance_total == pytest.approx(squares[:3].sum() / squares.sum())


def test_random_condition_averages_its_draws(
    loaded: LoadedModel, samples: list[Sample], modes: Modes
) -> None:
    result = ablate(loaded, samples, modes, ["random*4", "ms"], draws=200)
    random = result.condition("random*4")
    assert [draw.subset.seed for draw in random.draws] == [42, 43, 44, 45]
    mean_loss = np.mean([draw.loss for draw in random.draws], axis=0)
    assert random.change.mean_delta == pytest.approx((mean_loss - result.baseline).mean())
    assert random.percent_std == pytest.approx(np.std(random.percents, ddof=1))
    below = result.below_random("ms")
    assert below == (random.percents <= result.condition("ms").change.percent).mean()
    assert result.condition("ms").percent_std is None


def test_subsets(modes: Modes) -> None:
    found, left_out = subsets_of(modes, ("none", "ms", "ta", "top*3", "7, 1,1", "random*2", "random"), 42)
    assert left_out == ()
    assert [s.indices for s in found[:4]] == [(0, 2, 5, 7), (1, 3, 4, 6), (0, 1, 2), (1, 7)]
    published = np.sort(np.random.default_rng(42).choice(8, size=4, replace=False))
    assert found[4].indices == tuple(published)
    assert [s.seed for s in found] == [None, None, None, None, 42, 43, 42]
    assert all(len(s.indices) == 4 for s in found[4:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mss", "subset 'mss' is not understood; expected none, ms, ta"),
        ("random*0", "got 0, expected at least 1"),
        ("top*9", r"only 8 modes are considered; align with a larger top"),
        ("3,8", "modes 0 to 7, got 8"),
    ],
)
def test_subsets_that_cannot_be(modes: Modes, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subsets_of(modes, (name,), 42)


def test_a_subset_without_modes_is_left_out_unless_nothing_is_left(
    loaded: LoadedModel, samples: list[Sample], modes: Modes
) -> None:
    all_specific = replace(modes, config=replace(modes.config, threshold=10.0))
    result = ablate(loaded, samples, all_specific, ["ms", "ta"])
    assert [condition.name for condition in result.conditions] == ["ms"]
    assert result.left_out == ("ta left out: no considered mode has rho at or above 10",)
    assert result.left_out[0] in result.table().notes
    all_aligned = replace(modes, config=replace(modes.config, threshold=0.01))
    with pytest.raises(
        ValueError, match=r"no considered mode has rho below 0.01; align with another threshold"
    ):
        ablate(loaded, samples, all_aligned, ["ms", "random*2"])


def test_modes_of_another_width_or_point_are_refused(
    loaded: LoadedModel, samples: list[Sample], modes: Modes, tmp_path: Path
) -> None:
    from modegap.engine.errors import EngineError

    with pytest.raises(EngineError, match="adapter_outptu"):
        ablate(loaded, samples, modes, ["ms"], point="adapter_outptu")
    wide = adopt(Readout(), loaded.processor, points={"adapter_output": "head"})
    with pytest.raises(ValueError, match="14 wide, the modes 8: align at the point"):
        ablate(wide, samples, modes, ["ms"])
    saved = modes.save(tmp_path / "modes.safetensors")
    again = ablate(loaded, samples, saved, ["ms"])
    np.testing.assert_array_equal(again.baseline, ablate(loaded, samples, modes, ["none"]).baseline)


def test_paired_statistics() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(0)
    baseline = rng.gamma(4, 0.5, 300)
    loss = baseline * 0.97 + rng.normal(0, 0.05, 300)
    found = paired(baseline, loss, draws=4000, level=0.9, seed=1)
    test = ttest_1samp(loss - baseline, 0)
    assert (found.t, found.p) == (pytest.approx(test.statistic), pytest.approx(test.pvalue))
    assert found.percent == pytest.approx(100 * (loss - baseline).mean() / baseline.mean())
    # Delta method for the ratio of two means.
    ratio = (loss - baseline).mean() / baseline.mean()
    spread = np.std(loss - baseline - ratio * baseline, ddof=1) / np.sqrt(300) / baseline.mean()
    assert found.percent_high - found.percent_low == pytest.approx(100 * 2 * 1.645 * spread, rel=0.08)
    assert found.percent_low < found.percent < found.percent_high
    assert found.n == 300


def test_reports(loaded: LoadedModel, samples: list[Sample], modes: Modes) -> None:
    done: list[tuple[int, int]] = []
    result = ablate(loaded, samples, modes, ["ms", "random*2"], progress=lambda a, b: done.append((a, b)))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert isinstance(result, AblationResult)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert len(data["conditions"][1]["draws"][0]["loss"]) == len(samples) == data["n"]
    rows = result.table().rows
    assert [row[0] for row in rows] == ["none", "ms", "random*2"]
    assert rows[1][1] == 4
    chart = result.figure().to_dict()
    drawn = (
        [row for rows_ in chart["datasets"].values() for row in rows_]
        if "datasets" in chart
        else chart["data"]["values"]
    )
    assert {row["condition"] for row in drawn} == {"ms", "random*2"}
    assert sum(bool(row.get("draw")) for row in drawn) == 2
    assert "<svg" in result._repr_html_()
    assert result.certificate.kernel_paths["ablate"]["name"] == "cpu"
    assert result.certificate.store_hashes == modes.certificate.store_hashes
    assert "as published" in " ".join(result.table().notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": "ms"}, "subsets: got the text 'ms', expected a list"),
        ({"n_samples": 1}, "n_samples: got 1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"level": 1.0}, "level: got 1.0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AblateConfig(**options)
