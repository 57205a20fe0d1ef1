"""Data sets on the command line and in the facade: published ones, texts of a store, options, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import modegap as mg
from modegap.cli import main

LAB = ["--points", "llm_final", "--rows", "pooled", "--quiet"]


def test_a_published_data_set_and_its_texts(coco: Path, tmp_path: Path) -> None:
    """The media's store, then a text baseline from that store alone."""
    modal, text = tmp_path / "modal.zarr", tmp_path / "text.zarr"
    command = ["extract", "lab:aligned", "coco", str(modal), "--root", str(coco), "--split", "val2017", *LAB]
    assert main([*command, "--limit", "4", "--labels", "object_count", "lexical"]) == 0
    store = mg.open(modal)
    assert (store.samples, store.n_complete) == (["9", "25", "30", "42"], 4)
    assert store.labels["object_count"].values == ("2-4", "1", "5-10", None)
    assert store.labels["lexical"].values == ("a", "the", "a", "nothing")
    assert "spatial_spread" not in store.labels
    assert store.provenance["dataset"] == "coco:val2017"
    for image in (coco / "val2017").iterdir():
        image.unlink()
    assert main(["extract", "lab:text", f"store:{modal}", str(text), *LAB]) == 0
    baseline = mg.open(text)
    assert baseline.samples == store.samples
    assert baseline.labels["text"].values == store.labels["text"].values
    assert baseline.labels["object_count"].values == store.labels["object_count"].values
    assert baseline.provenance["dataset"] == "coco:val2017"


def test_as_text_needs_no_media(librispeech: Path, tmp_path: Path) -> None:
    for recording in librispeech.rglob("*.flac"):
        recording.unlink()
    store = tmp_path / "text.zarr"
    command = [
        "extract",
        "lab:text",
        "librispeech",
        str(store),
        "--root",
        str(librispeech),
        "--as-text",
        *LAB,
    ]
    assert main(command) == 0
    assert mg.open(store).labels["gender"].values == ("male", "female", "female", "female")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["librispeech"], "needs root=, the folder that holds LibriSpeech/<split>/<speaker>/<chapter>/"),
        (["librispeech", "--root", "nowhere"], "there is no folder nowhere"),
        (["lab", "--root", "x"], "data set lab takes no option 'root'; it takes split, size, seed, limit"),
        (["lab", "--split", "tset"], "tset"),
        (["hf:"], "got hf: without a name"),
        (["store:nothing.zarr"], "nothing.zarr"),
        (["nothing"], "no data set at nothing"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = arguments
    assert main(["extract", "lab:text", name, str(tmp_path / "s.zarr"), *options, *LAB]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()


def test_ablate_takes_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--root", "--split", "--media", "--text", "--labels", "--limit"):
        assert flag in shown
    assert main(["ablate", "lab:plain", "lab", "none.safetensors", "--limit", "0"]) == 2
    assert "got limit 0" in capsys.readouterr().err
    assert main(["ablate", "lab:plain", "coco", "none.safetensors", "--quiet"]) == 1
    assert "needs root=" in capsys.readouterr().err


def test_the_facade(coco: Path) -> None:
    assert list(mg.dataset("lab:train", limit=2).ids) == list(mg.dataset("lab", split="train", size=2).ids)
    assert len(mg.dataset([mg.Sample("a", "x")])) == 1
    (coco / "val2017" / "000000000009.jpg").write_bytes(b"")
    data = mg.dataset("coco", root=coco, skip_bad=True)
    assert list(data.ids) == ["25", "30", "42", "51"]
    assert json.dumps({name: list(values) for name, values in data.labels().items()})
    with pytest.raises(ValueError, match="data set lab takes no option 'labels'"):
        mg.dataset("lab", labels=["digit"])


def test_batches_are_the_same_with_workers(coco: Path) -> None:
    _, processor = mg.load("lab:aligned")
    data = mg.dataset("coco", root=coco)
    alone = list(mg.batches(data, processor, batch_size=2))
    helped = list(mg.batches(data, processor, batch_size=2, workers=2))
    assert [batch.ids for batch in helped] == [["9", "25"], ["30", "42"], ["51"]]
    for one, other in zip(alone, helped, strict=True):
        assert one.ids == other.ids
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            assert tensor.equal(other.tensors[name])
