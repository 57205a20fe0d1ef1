"""Data sets: folders, tables, text files, lists; and what they say about a mistake."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modegap.engine.datasets import Dataset, ListDataset, Sample, TextView, as_text, dataset
from modegap.engine.errors import EngineError


def save_image(path: Path, value: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (5, 4), value if mode == "L" else (value, 0, 0)).save(path)


def save_wav(path: Path, values: np.ndarray, rate: int, width: int, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(values.tobytes())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(3):
        save_image(tmp_path / "pictures" / f"{i}.png", i * 100)
    rows = [
        "file,text,kind,score,speaker",
        "0.png,a cat,cat,1,007",
        "1.png,a dog,dog,2.5,008",
        '2.png,"a, b",cat,,009',
    ]
    (tmp_path / "pictures" / "metadata.csv").write_text("\n".join(rows))
    return tmp_path / "pictures"


def test_folder_with_a_table(images: Path) -> None:
    data = dataset(images)
    assert isinstance(data, Dataset)
    assert (data.name, data.modality, len(data)) == ("pictures", "image", 3)
    assert list(data.ids) == ["0.png", "1.png", "2.png"]
    assert data.labels() == {
        "kind": ["cat", "dog", "cat"],
        "score": [1.0, 2.5, None],
        "speaker": [7, 8, 9],
    }
    second = data[1]
    assert (second.text, second.labels) == ("a dog", {"kind": "dog", "score": 2.5, "speaker": 8})
    assert second.media.getpixel((0, 0)) == (100, 0, 0)
    assert [sample.text for sample in data] == ["a cat", "a dog", "a, b"]


def test_labels_wanted_and_their_kind(images: Path) -> None:
    chosen = dataset(images / "metadata.csv", labels={"speaker": "category"})
    assert chosen.labels() == {"speaker": ["007", "008", "009"]}
    assert dataset(images, labels=["kind"]).labels() == {"kind": ["cat", "dog", "cat"]}
    with pytest.raises(EngineError, match=r"no label column 'speakers' .*did you mean 'speaker'"):
        dataset(images, labels=["speakers"])
    with pytest.raises(EngineError, match=r"column 'kind'.*make it a category"):
        dataset(images, labels={"kind": "number"})


def test_table_elsewhere_with_other_column_names(images: Path, tmp_path: Path) -> None:
    lines = [
        {"uid": "x", "picture": "0.png", "caption": "one", "ask": "what ?", "n": 3},
        {"uid": "y", "picture": "1.png", "caption": "two", "ask": None, "n": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    data = dataset(
        tmp_path / "rows.jsonl",
        root=images,
        media="picture",
        text="caption",
        id="uid",
        prompt="ask",
        name="mine",
    )
    assert data.name == "mine"
    assert [(s.id, s.text, s.prompt, s.labels) for s in data] == [
        ("x", "one", "what ?", {"n": 3}),
        ("y", "two", None, {"n": None}),
    ]


def test_folder_without_a_table(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.JPG", "dog/1.png"):
        save_image(tmp_path / name, 9)
    (tmp_path / "cat" / "1.txt").write_text("a cat\n")
    data = dataset(tmp_path)
    assert list(data.ids) == ["cat/1.png", "cat/2.JPG", "dog/1.png"]
    assert data.labels() == {"folder": ["cat", "cat", "dog"]}
    assert [sample.text for sample in data] == ["a cat", "", ""]


@pytest.mark.parametrize(
    ("width", "dtype", "top"), [(1, np.uint8, 127.5), (2, np.int16, 32767), (4, np.int32, 2**31 - 1)]
)
def test_wav_of_every_width(width: int, dtype: type, top: float, tmp_path: Path) -> None:
    true = np.sin(np.linspace(0, 20, 800))
    stored = (true * top + (128 if width == 1 else 0)).astype(dtype)
    save_wav(tmp_path / "a.wav", stored, 8000, width)
    values, rate = dataset(tmp_path)[0].media
    assert rate == 8000
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, true, atol=2.1 * 2.0 ** (1 - 8 * width) + 1e-6)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = np.full(9, 8000, dtype=np.int16), np.full(9, -4000, dtype=np.int16)
    save_wav(tmp_path / "s.wav", np.stack([left, right], axis=1), 16000, 2, channels=2)
    values, _ = dataset(tmp_path)[0].media
    np.testing.assert_allclose(values, 2000 / 32768, rtol=1e-6)


def test_text_files_and_tables_of_text(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("first\n\nsecond\n")
    data = dataset(tmp_path / "lines.txt")
    assert (data.modality, list(data.ids), [s.text for s in data]) == (
        "text",
        ["0", "1"],
        ["first", "second"],
    )
    (tmp_path / "t.tsv").write_text("id\ttext\tlang\na\tx y\ten\nb\tz\tde\n")
    table = dataset(tmp_path / "t.tsv")
    assert (table.modality, list(table.ids), table.labels()) == ("text", ["a", "b"], {"lang": ["en", "de"]})


def test_as_text_decodes_nothing(images: Path) -> None:
    data = dataset(images)
    view = as_text(data)
    (images / "1.png").write_bytes(b"not an image")
    assert [(s.id, s.text, s.media, s.labels["kind"]) for s in view][1] == ("1.png", "a dog", None, "dog")
    assert view.labels() == data.labels()
    assert (view.name, view.modality, list(view.ids), len(view)) == ("pictures", "text", list(data.ids), 3)
    assert isinstance(view, TextView)
    assert as_text(view) is view
    with pytest.raises(
        EngineError, match=r"cannot decode .*1\.png of sample '1\.png'.*replace the file or remove"
    ):
        data[1]


def test_a_broken_sound_names_the_sample(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF....")
    with pytest.raises(EngineError, match=r"sample 'a\.wav'"):
        dataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("file,text\n0.png,a\nx.png,b\n", {}, r"x\.png of sample 'x\.png' does not exist \(1 of its 2 files"),
        ("id,file,text\na,0.png,x\na,1.png,y\n", {}, "the id 'a' occurs 2 times"),
        (
            "file,caption\n0.png,a\n",
            {"text": "captoin"},
            r"no column 'captoin' for text= \(it has file, caption\)",
        ),
        ("caption\nx\n", {}, r"no column 'text' for text="),
        ("file,text\n0.png,a\n", {"media": "path"}, "no column 'path' for media="),
        ("file,text\n,a\n", {}, "row 1 .* has no 'file'"),
        ("file,text\n0.png,a,b\n", {}, "line 2 has another number of fields"),
        ("file,text\n", {}, "no column|no rows"),
        ("file,text\nmetadata.csv,a\n", {}, "neither image nor audio"),
        ("id,file,text\n" + "x" * 300 + ",0.png,x\n", {}, "1 to 255 UTF-8 bytes"),
    ],
)
def test_mistakes_in_tables(table: str, options: dict, message: str, images: Path) -> None:
    (images / "metadata.csv").write_text(table)
    with pytest.raises(EngineError, match=message) as caught:
        dataset(images, **options)
    assert "\n" not in str(caught.value)


def test_mistakes_in_jsonl(tmp_path: Path) -> None:
    for line, message in (
        ("{", "line 1 is not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": {}}', "'text' is nested"),
    ):
        (tmp_path / "r.jsonl").write_text(line)
        with pytest.raises(EngineError, match=message):
            dataset(tmp_path / "r.jsonl")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(EngineError, match=r"no data set at .*did you mean .*pictures"):
        dataset(tmp_path / "picturs")
    with pytest.raises(EngineError, match="holds no table and no image or audio"):
        dataset(tmp_path / "pictures")
    for name in ("a.csv", "b.csv"):
        (tmp_path / "pictures" / name).write_text("text\nx\n")
    with pytest.raises(EngineError, match="holds 2 tables"):
        dataset(tmp_path / "pictures")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(EngineError, match="no UTF-8"):
        dataset(tmp_path / "latin.txt")


def test_mixed_folders(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 1)
    save_wav(tmp_path / "b.wav", np.zeros(4, dtype=np.int16), 8000, 2)
    with pytest.raises(EngineError, match=r"mixes image \(sample 'a.png'\), audio \(sample 'b.wav'\)"):
        dataset(tmp_path)


def test_lists() -> None:
    samples = [Sample("a", "x", labels={"k": 1}), Sample("b", "y", labels={"k": None})]
    data = dataset(samples)
    assert isinstance(data, ListDataset)
    assert data.labels() == {"k": [1, None]}
    assert list(data) == samples
    picture = Image.new("RGB", (2, 2))
    for wrong, message in (
        ([], "is empty"),
        ([*samples, samples[0]], "the id 'a' occurs 2 times"),
        ([*samples, Sample("c", "z")], "sample 'c' has the labels"),
        (
            [*samples, Sample("c", "z", picture, labels={"k": 2})],
            "sample 'c' is image, the first one is text",
        ),
        ([Sample("", "z")], "row 0 has the id ''"),
    ):
        with pytest.raises(EngineError, match=message):
            dataset(wrong)


LABEL = st.one_of(st.none(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False))
WORD = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20)


@settings(deadline=None)  # the first example pays for the file system
@given(rows=st.lists(st.tuples(WORD, LABEL), min_size=1, max_size=12))
def test_jsonl_round_trip(
    rows: list[tuple[str, float | int | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    lines = [{"id": f"s{i}", "text": text, "n": number} for i, (text, number) in enumerate(rows)]
    path.write_text(
        "\n".join(json.dumps(line, ensure_ascii=bool(i % 2)) for i, line in enumerate(lines)), "utf-8"
    )
    data = dataset(path)
    assert [sample.text for sample in data] == [text for text, _ in rows]
    assert data.labels()["n"] == [number for _, number in rows]
