"""The built-in lab: what ships is intact, the data are what they claim, both variants caption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modegap.analyses import lab
from modegap.analyses.lab import LabDataset
from modegap.analyses.lab.canvas import ATTRIBUTES, CANVAS
from modegap.analyses.lab.grammar import CAPTIONS, DIGITS, PROMPT, attribute_words, named_digits, words
from modegap.analyses.lab.models import WEIGHTS, parts
from modegap.analyses.lab.scans import load_scans, split_indices
from modegap.analyses.lab.train import content_hash, file_hashes, headline, train
from modegap.engine.datasets.base import Dataset


@pytest.fixture(scope="module")
def pair() -> dict[str, tuple[Any, Any]]:
    return {variant: lab.load(variant) for variant in lab.VARIANTS}


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Any:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def inputs_of(processor: Any, dataset: LabDataset, rows: list[int], texts: list[str], side: str) -> Any:
    images = [dataset[row].media for row in rows]
    return processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")


# -- package data


def test_weights_are_small_and_match_their_hashes() -> None:
    facts = lab.facts()
    assert facts["files"] == file_hashes(WEIGHTS)
    assert facts["content_hash"] == content_hash(WEIGHTS)
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 8 * 2**20
    assert facts["steps_scale"] == 1.0


def test_recorded_headline_meets_the_target() -> None:
    facts = lab.facts()
    for variant in lab.VARIANTS:
        found = facts["variants"][variant]
        assert found["images"] >= 200
        assert found["digit_accuracy"] >= 0.8
    assert min(facts["decoder"]["answer_accuracy"].values()) >= 0.9
    assert "held-out images" in headline(facts)


def test_import_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, modegap.analyses.lab as lab; lab.LabDataset(size=1)[0];"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# -- data


def test_dataset_conforms_to_the_protocol() -> None:
    dataset = LabDataset("test", size=20)
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.modality, len(dataset)) == ("lab", "image", 20)
    assert [sample.id for sample in dataset] == list(dataset.ids)
    columns = dataset.labels()
    for row, sample in enumerate(dataset):
        assert sample.media.size == (CANVAS, CANVAS)
        assert sample.media.mode == "RGB"
        assert dict(sample.labels) == {name: column[row] for name, column in columns.items()}
        assert named_digits(sample.text) == [sample.labels["digit"]]
    assert dataset[-1].id == dataset[19].id
    with pytest.raises(IndexError, match="20 samples"):
        dataset[20]


def test_sample_is_pinned() -> None:
    """The same bytes on every machine: a change here changes every store extracted from the lab."""
    import hashlib

    dataset = LabDataset("test", size=361)
    digest = hashlib.sha256()
    for row in (0, 7, 360):
        sample = dataset[row]
        digest.update(f"{sample.id}|{sample.text}|{sorted(sample.labels.items())}".encode())
        digest.update(np.asarray(sample.media).tobytes())
    assert digest.hexdigest() == "0d81776d2c1d40c67975f6abf3c15be5d0cc0ba16c0ccf713ba215e6c5ca40e2"


def test_size_goes_round_with_fresh_attributes_and_seed_moves_them() -> None:
    dataset = LabDataset("test", size=720)
    assert len(set(dataset.ids)) == 720
    first, again = dataset[5], dataset[365]
    assert first.labels["scan"] == again.labels["scan"]
    assert again.id == first.id.replace("-r0", "-r1")
    assert not np.array_equal(np.asarray(first.media), np.asarray(again.media))
    other = LabDataset("test", seed=3)
    assert other[5].id == f"{first.id}-s3"
    assert not np.array_equal(np.asarray(first.media), np.asarray(other[5].media))
    assert np.array_equal(np.asarray(first.media), np.asarray(LabDataset("test", size=6)[5].media))


def test_splits_share_no_scan_and_are_stratified() -> None:
    train_scans, test_scans = set(split_indices("train")), set(split_indices("test"))
    assert not train_scans & test_scans
    assert len(train_scans) + len(test_scans) == 1797
    assert len(test_scans) == len(LabDataset("test")) == 360
    assert np.bincount(load_scans()[1][list(test_scans)]).tolist() == pytest.approx([36] * 10, abs=1)


def test_attributes_are_all_there_and_independent_of_the_digit() -> None:
    columns = LabDataset("train").labels()
    for name, values in ATTRIBUTES.items():
        counts = [columns[name].count(value) for value in values]
        assert min(counts) > 0.8 * len(columns[name]) / len(values)
        table = [
            [
                sum(d == digit and v == value for d, v in zip(columns["digit"], columns[name], strict=True))
                for value in values
            ]
            for digit in DIGITS
        ]
        observed = np.array(table, dtype=float)
        expected = observed.sum(1, keepdims=True) * observed.sum(0) / observed.sum()
        statistic = ((observed - expected) ** 2 / expected).sum()
        freedom = 9 * (len(values) - 1)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_captions_name_the_digit_only() -> None:
    texts = [sample for template in CAPTIONS for sample in words(template)]
    assert not attribute_words() & set(texts)
    for text in [LabDataset("test", size=60)[row].text for row in range(60)]:
        assert not attribute_words() & set(words(text))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="expected one of train, test"):
        LabDataset("dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got size 0"):
        LabDataset(size=0)
    with pytest.raises(ValueError, match=r"plain, aligned \(the nearest is 'aligned'\)"):
        lab.load("aligend")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain, aligned"):
        lab.load("nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"without config\.json"):
        lab.load(root="/nowhere")


# -- models


@pytest.mark.parametrize("variant", lab.VARIANTS)
def test_variant_captions_held_out_images(pair: dict[str, tuple[Any, Any]], variant: str) -> None:
    from modegap.analyses.lab.scoring import digit_accuracy, generate_captions

    dataset = LabDataset("test", size=200)
    written = generate_captions(*pair[variant], dataset)
    assert digit_accuracy(written, dataset) >= 0.8
    assert not attribute_words() & {word for text in written for word in words(text)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", lab.VARIANTS)
def test_batch_equals_one_by_one(pair: dict[str, tuple[Any, Any]], variant: str, side: str) -> None:
    import torch

    model, processor = pair[variant]
    dataset = LabDataset("test", size=4)
    texts = [
        PROMPT,
        f"{PROMPT} this is",
        f"{PROMPT} a photo of the digit seven",
        "where is the digit? <image>",
    ]
    batch = inputs_of(processor, dataset, [0, 1, 2, 3], texts, side)
    with torch.no_grad():
        together = model(**batch).logits
        for row in range(4):
            alone = model(**inputs_of(processor, dataset, [row], [texts[row]], side)).logits[0]
            kept = together[row][batch["attention_mask"][row].bool()]
            assert kept.shape == alone.shape
            torch.testing.assert_close(kept, alone, atol=1e-4, rtol=0)


def test_processor_expands_the_placeholder_and_matches_training(pair: dict[str, tuple[Any, Any]]) -> None:
    import torch

    from modegap.analyses.lab.stage import pixels

    model, processor = pair["plain"]
    dataset = LabDataset("test", size=2)
    batch = inputs_of(processor, dataset, [0, 1], [PROMPT, PROMPT], "left")
    assert (batch["input_ids"] == model.config.image_token_index).sum(1).tolist() == [16, 16]
    assert processor.tokenizer.unk_token_id not in batch["input_ids"]
    expected = pixels(np.stack([np.asarray(dataset[row].media) for row in range(2)]))
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-6, rtol=0)


def test_variants_share_the_decoder_and_nothing_else(pair: dict[str, tuple[Any, Any]]) -> None:
    import torch

    text, tokenizer = lab.load_text()
    shared = text.state_dict()
    found = {variant: parts(model) for variant, (model, _) in pair.items()}
    for part in found.values():
        for name, value in part["decoder"].state_dict().items():
            assert torch.equal(value, shared[f"model.{name}"])
        assert torch.equal(part["head"].state_dict()["weight"], shared["lm_head.weight"])
    for name in ("encoder", "projector"):
        one, other = (found[variant][name].state_dict() for variant in lab.VARIANTS)
        assert not any(torch.equal(one[key], other[key]) for key in one if key.endswith("fc1.weight"))
    assert tokenizer.get_vocab() == pair["plain"][1].tokenizer.get_vocab()


def test_text_decoder_reads_a_scene_in_words() -> None:
    import torch

    model, tokenizer = lab.load_text()
    texts = [
        "a small red seven on a black background . describe this image .",
        "a two at the left of a navy image . where is the digit ?",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
    caption, place = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert named_digits(caption) == ["seven"]
    assert place.strip() == "left"


def test_loading_leaves_the_random_state_and_takes_a_dtype() -> None:
    import torch

    before = torch.random.get_rng_state()
    model, _ = lab.load("aligned", dtype="bfloat16")
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.dtype == torch.bfloat16
    assert not model.training


# -- training


@pytest.mark.slow
def test_training_script_end_to_end_and_repeatable(tmp_path: Path) -> None:
    facts = [train(tmp_path / name, seed=1, steps_scale=0.01, log=lambda _: None) for name in ("one", "two")]
    assert json.loads((tmp_path / "one" / "lab.json").read_text()) == facts[0]
    assert facts[0]["content_hash"] == facts[1]["content_hash"]
    assert headline(facts[0]) == headline(facts[1])
    for variant in lab.VARIANTS:
        model, processor = lab.load(variant, root=tmp_path / "one")
        batch = inputs_of(processor, LabDataset(size=2), [0, 1], [PROMPT, PROMPT], "left")
        assert model.generate(**batch).shape[0] == 2
    assert lab.load_text(root=tmp_path / "one")[0].config.num_hidden_layers == 6
