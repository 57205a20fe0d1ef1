"""Hugging Face data sets from local folders: columns, splits, undecoded media."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modegap.engine.datasets import MediaError, as_text, dataset, decoded, media_sizes
from modegap.engine.errors import EngineError

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

Write = Callable[..., Path]


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "captions": datasets.Sequence(datasets.Value("string")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "score": datasets.Value("float32"),
            "known": datasets.Value("bool"),
            "where": datasets.Value("string"),
            "boxes": datasets.Sequence(datasets.Value("int64")),
            "key": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": png(10), "path": "x.png"}, {"bytes": png(20), "path": None}, None],
        "captions": [["a cat", "other"], ["a dog"], []],
        "label": [0, 1, -1],
        "score": [0.5, None, 2.0],
        "known": [True, False, None],
        "where": ["here", "", "there"],
        "boxes": [[1], [2], [3]],
        "key": ["k1", "k2", "k3"],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    return tmp_path


def test_images_of_a_saved_data_set(images: Path) -> None:
    data = dataset(f"hf:{images / 'one'}", id="key", name="mine")
    assert (data.name, data.modality, list(data.ids)) == ("mine", "image", ["k1", "k2", "k3"])
    assert data.labels() == {
        "label": ["cat", "dog", None],
        "score": [0.5, None, 2.0],
        "known": [1, 0, None],
        "where": ["here", None, "there"],
    }
    assert [sample.text for sample in as_text(data)] == ["a cat", "a dog", ""]
    assert data[0].media.getpixel((0, 0)) == (10, 0, 0)
    with pytest.raises(MediaError, match=r"image in row 2 of sample 'k3' \(the file is empty\)"):
        data[2]
    np.testing.assert_array_equal(media_sizes(data), [20.0, 20.0, np.nan])
    kept = dataset(f"hf:{images / 'one'}", id="key", skip_bad=True, workers=1)
    assert list(kept.ids) == ["k1", "k2"]
    assert [s.media.getpixel((0, 0))[0] for _, s in decoded(kept, workers=1)] == [10, 20]
    assert len(pickle.dumps(data)) < 20_000  # workers map the file, they are not sent the media


def test_splits(images: Path) -> None:
    with pytest.raises(EngineError, match=r"has the splits train, test; name one \(split=\)"):
        dataset(f"hf:{images / 'two'}")
    with pytest.raises(EngineError, match="has the splits train, test"):
        dataset(f"hf:{images / 'two'}", split="val")
    assert [sample.text for sample in dataset(f"hf:{images / 'two'}", split="test")] == ["a dog"]


def test_columns_that_are_not_there(images: Path) -> None:
    spec = f"hf:{images / 'one'}"
    for options, message in (
        ({"media": "picture"}, r"no column 'picture' of images or audio for media= \(those are: image"),
        ({"text": "words"}, "no column 'words' for text= .it has image, captions"),
        ({"id": "uid"}, "no column 'uid' for id="),
        ({"labels": ["boxes"]}, "no label column 'boxes'"),
        ({"speakers": 3}, "a Hugging Face data set takes no option 'speakers'"),
    ):
        with pytest.raises(EngineError, match=message) as caught:
            dataset(spec, **options)
        assert "\n" not in str(caught.value)


def test_audio_of_a_folder_of_files(sound: Write, tmp_path: Path) -> None:
    """Parquet as on the Hub: encoded bytes, a reader's format in its metadata."""
    clips = [sound(tmp_path / "a.wav", seconds=0.1, rate=8000), sound(tmp_path / "b.flac", seconds=0.2)]
    cells = [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips]
    rows = {"audio": cells, "transcription": ["hello", "world"], "speaker": ["s1", "s2"]}
    table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "test.parquet")
    data = dataset(f"hf:{tmp_path / 'files'}", root=tmp_path / "cache")
    assert (data.modality, [s.text for s in as_text(data)], data.labels()) == (
        "audio",
        ["hello", "world"],
        {"speaker": ["s1", "s2"]},
    )
    assert [s.media[1] for s in data] == [8000, 16000]
    np.testing.assert_allclose(media_sizes(data), [0.1, 0.2])


def test_why_a_folder_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(EngineError, match=r"cannot open data set .*\((?!An error occurred).+\); check id"):
        dataset(f"hf:{tmp_path}", root=tmp_path / "cache", split="train")


def test_texts(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"sentence": ["x", "y"], "ask": ["p", ""], "n": [1, 2]})
    table.save_to_disk(tmp_path / "t")
    data = dataset(f"hf:{tmp_path / 't'}", prompt="ask")
    assert (data.modality, [(s.id, s.text, s.prompt) for s in data]) == (
        "text",
        [("0", "x", "p"), ("1", "y", None)],
    )
    assert data.labels() == {"n": [1, 2]}
    datasets.Dataset.from_dict({"n": [1]}).save_to_disk(tmp_path / "n")
    with pytest.raises(EngineError, match=r"neither media nor texts known by name .it has n"):
        dataset(f"hf:{tmp_path / 'n'}")


def test_an_id_that_is_not_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for spec in ("hf:nobody/nothing", "hf:nobody/nothing:config:test"):
        with pytest.raises(
            EngineError, match=r"cannot open data set nobody/nothing \(.*go online once"
        ) as caught:
            dataset(spec, root=tmp_path)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="got hf: without a name"):
        dataset("hf:")
