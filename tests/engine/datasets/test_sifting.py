"""Bad samples found before a run, and views of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from modegap.engine.datasets import (
    BadSample,
    Dataset,
    ListDataset,
    Sample,
    Subset,
    as_text,
    bad_samples,
    dataset,
    decoded,
    limited,
    media_sizes,
    sift,
    unsifted,
)
from modegap.engine.errors import EngineError

Write = Callable[..., Path]


@pytest.fixture
def table(picture: Write, lines: Write, tmp_path: Path) -> Path:
    for i in (0, 1, 2, 4):
        picture(tmp_path / f"{i}.png", value=i * 10)
    (tmp_path / "1.png").write_bytes(b"no image")
    rows = ["file,text,kind", "0.png,zero,a", "1.png,one,b", "2.png,,c", "3.png,three,d", "4.png,four,e"]
    return lines(tmp_path / "metadata.csv", *rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_found_and_left_out(table: Path, workers: int) -> None:
    data = unsifted(table, keep_missing=True)
    seen: list[tuple[int, int]] = []
    kept, bad = sift(data, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert [(one.index, one.id) for one in bad] == [(1, "1.png"), (3, "3.png")]
    assert bad[1].to_json() == {
        "index": 3,
        "id": "3.png",
        "file": str(table.parent / "3.png"),
        "reason": "the file does not exist",
    }
    assert bad[0].reason == "it is no image that Pillow reads"
    assert list(kept.ids) == ["0.png", "2.png", "4.png"]
    assert kept.labels() == {"kind": ["a", "c", "e"]}
    assert [sample.media.getpixel((0, 0))[0] for _, sample in decoded(kept, workers=workers)] == [0, 20, 40]
    assert media_sizes(kept).tolist() == [48.0] * 3
    assert sift(kept) == (kept, ())


def test_skip_bad_from_one_call(table: Path) -> None:
    with pytest.raises(EngineError, match=r"3\.png of sample '3\.png' does not exist .*skip_bad"):
        dataset(table)
    assert list(dataset(table, skip_bad=True).ids) == ["0.png", "2.png", "4.png"]
    assert list(dataset(table, skip_bad=True, limit=2).ids) == ["0.png"]


def test_a_text_without_text_is_bad(table: Path) -> None:
    texts = as_text(unsifted(table, keep_missing=True))
    assert bad_samples(texts) == (BadSample(2, "2.png", "", "it has no text"),)
    assert [sample.text for sample in sift(texts)[0]] == ["zero", "one", "three", "four"]


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(
        EngineError, match=r"all 1 samples .* are bad; the first is 'a\.png': the file is empty"
    ):
        dataset(tmp_path, skip_bad=True)


def test_subsets(table: Path) -> None:
    data = unsifted(table, keep_missing=True)
    some = Subset(data, [4, 0])
    assert isinstance(some, Dataset)
    assert (list(some.ids), len(some), some.name, some.modality) == (
        ["4.png", "0.png"],
        2,
        data.name,
        "image",
    )
    assert [(s.id, s.media) for s in map(some.row, range(2))] == [("4.png", None), ("0.png", None)]
    assert [s.text for s in as_text(some)] == ["four", "zero"]
    assert some[1].media.size == (8, 6)
    assert list(Subset(some, [1]).ids) == ["0.png"]
    for wrong in ([0, 0], [5], [-1]):
        with pytest.raises(ValueError, match="beyond 0 to 4, or one of them twice"):
            Subset(data, wrong)
    with pytest.raises(EngineError, match=r"no sample of data set .* is left"):
        Subset(data, [])


def test_limits(table: Path) -> None:
    data = unsifted(table, keep_missing=True, limit=3)
    assert list(data.ids) == ["0.png", "1.png", "2.png"]
    assert limited(data, 3) is data
    assert limited(data, None) is data
    with pytest.raises(ValueError, match="got limit 0"):
        dataset(table, limit=0, skip_bad=True)


def test_subsets_of_samples_in_memory_need_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modegap.engine.datasets.decoding.ProcessPoolExecutor", None)
    samples = [Sample(str(i), "", Image.new("RGB", (2 + i, 2))) for i in range(3)]
    some = Subset(ListDataset(samples), [2, 0])
    assert [sample.media.width for _, sample in decoded(some, workers=2)] == [4, 2]
    assert media_sizes(some).tolist() == [8.0, 4.0]


def test_label_columns_that_are_missing_or_empty(lines: Write, tmp_path: Path) -> None:
    table = lines(tmp_path / "t.csv", "text,kind,mood", "x,a,", "y,b,")
    with pytest.raises(EngineError, match=r"'mood' is empty in every row \(columns with values: kind\)"):
        dataset(table, labels=["mood"])
    with pytest.raises(
        EngineError, match=r"no label column 'moods' \(it has kind, mood\); did you mean 'mood'"
    ):
        dataset(table, labels=["moods"])
    assert dataset(table).labels() == {"kind": ["a", "b"], "mood": [None, None]}
    with pytest.raises(
        EngineError, match="takes no option 'split'; it takes root, media, text, id, prompt, labels, name"
    ):
        dataset(table, split="train")
