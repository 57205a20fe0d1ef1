"""Loaders of published data sets: ids, texts and labels of tiny ones in the same layouts; wrong layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modegap.engine.datasets import Dataset, MediaError, as_text, dataset, media_sizes
from modegap.engine.datasets.published.boxes import box_labels
from modegap.engine.errors import EngineError

Write = Callable[..., Path]


def test_librispeech(librispeech: Path) -> None:
    data = dataset("librispeech", root=librispeech)
    assert (data.name, data.modality) == ("librispeech:test-clean", "audio")
    assert list(data.ids) == ["61-70968-0000", "1089-99-0000", "1089-134686-0000", "1089-134686-0001"]
    assert data.labels() == {
        "speaker": ["61", "1089", "1089", "1089"],
        "chapter": ["70968", "99", "134686", "134686"],
        "lexical": ["he", "the", "he", "stuff"],
        "gender": ["male", "female", "female", "female"],
    }
    sample = data[0]
    assert (sample.text, sample.media[1], sample.media[0].shape) == ("HE BEGAN A TALE", 16000, (800,))
    for root in (librispeech / "LibriSpeech", str(librispeech)):
        assert dataset("librispeech:test-clean", root=root).ids == data.ids
    (librispeech / "LibriSpeech" / "SPEAKERS.TXT").unlink()
    assert "gender" not in dataset("librispeech", root=librispeech).labels()


def test_librispeech_laid_out_wrong(librispeech: Path, lines: Write) -> None:
    chapter = librispeech / "LibriSpeech" / "test-clean" / "61" / "70968"
    for spec, root, message in (
        (
            "librispeech:dev-clean",
            librispeech,
            r"does not hold LibriSpeech/dev-clean/.*it holds LibriSpeech/\)",
        ),
        (
            "librispeech",
            librispeech / "nowhere",
            "there is no folder .*nowhere; root= is the folder that holds",
        ),
        ("librispeech", chapter.parent, "correct root="),
    ):
        with pytest.raises(EngineError, match=message) as caught:
            dataset(spec, root=root)
        assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match="needs root=, the folder that holds LibriSpeech/<split>"):
        dataset("librispeech")
    with pytest.raises(
        EngineError, match=r"no label column 'emotion' .it has speaker, chapter, lexical, gender"
    ):
        dataset("librispeech", root=librispeech, labels=["emotion"])
    with pytest.raises(
        EngineError, match="data set librispeech takes no option 'media'; it takes root, split, labels"
    ):
        dataset("librispeech", root=librispeech, media="audio")
    (chapter / "61-70968-0000.flac").rename(chapter / "61-70968-0009.flac")
    with pytest.raises(EngineError, match=r"has no line for 61-70968-0009\.flac"):
        dataset("librispeech", root=librispeech)
    (chapter / "61-70968-0009.flac").unlink()
    with pytest.raises(
        EngineError, match=r"61-70968-0000\.flac of sample '61-70968-0000' does not exist \(1 of its 4"
    ):
        dataset("librispeech", root=librispeech)
    kept = dataset("librispeech", root=librispeech, skip_bad=True)
    assert list(kept.ids) == ["1089-99-0000", "1089-134686-0000", "1089-134686-0001"]
    assert kept.labels()["gender"] == ["female"] * 3
    lines(chapter / "61-70968.trans.txt", "61-70968-0000")
    with pytest.raises(EngineError, match=r"line 1 of .* is not"):
        dataset("librispeech", root=librispeech)
    (librispeech / "LibriSpeech" / "test-other").mkdir()
    with pytest.raises(
        EngineError, match=r"holds no <speaker>/<chapter>/\*\.trans\.txt; unpack test-other\.tar\.gz"
    ):
        dataset("librispeech:test-other", root=librispeech)


@pytest.mark.parametrize("folder", ["AudioWAV", "."])
def test_cremad(folder: str, cremad: Path, sound: Write, lines: Write, tmp_path: Path) -> None:
    for clip in () if folder == "AudioWAV" else sorted((cremad / "AudioWAV").iterdir()):
        clip.rename(tmp_path / folder / clip.name)
    if folder != "AudioWAV":
        (cremad / "AudioWAV").rmdir()
    data = dataset("CREMA-D", root=tmp_path)
    assert list(data.ids) == [
        "1001_DFA_ANG_XX",
        "1001_IEO_HAP_HI",
        "1002_TAI_FEA_LO",
        "1002_WSI_NEU_MD",
        "1040_ITH_SAD_X",
    ]
    assert [sample.text for sample in data][:2] == ["Don't forget a jacket.", "It's eleven o'clock."]
    columns = {
        "speaker": ["1001", "1001", "1002", "1002", "1040"],
        "sentence": ["DFA", "IEO", "TAI", "WSI", "ITH"],
        "emotion": ["anger", "happy", "fear", "neutral", "sadness"],
        "level": ["unspecified", "high", "low", "medium", "unspecified"],
        "lexical": ["don", "it", "the", "we", "i"],
    }
    assert data.labels() == columns
    lines(
        tmp_path / "VideoDemographics.csv",
        "ActorID,Age,Sex,Race,Ethnicity",
        "1001,51,Male,Caucasian,Not Hispanic",
        "1002,21,Female,Asian,Hispanic",
    )
    assert dataset("cremad", root=tmp_path).labels() == columns | {
        "age": [51, 51, 21, 21, None],
        "gender": ["male", "male", "female", "female", None],
        "race": ["caucasian", "caucasian", "asian", "asian", None],
        "ethnicity": ["not hispanic", "not hispanic", "hispanic", "hispanic", None],
    }
    lines(tmp_path / "VideoDemographics.csv", "ActorID,Age", "1001,51")
    with pytest.raises(EngineError, match="has no column Sex, Race, Ethnicity"):
        dataset("cremad", root=tmp_path)
    (tmp_path / "VideoDemographics.csv").unlink()
    sound(tmp_path / folder / "1001_DFA_BAD_XX.wav")
    with pytest.raises(EngineError, match=r"1001_DFA_BAD_XX\.wav is not named <speaker>_<sentence>"):
        dataset("cremad", root=tmp_path)


def test_cremad_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "VideoFlash").mkdir()
    with pytest.raises(EngineError, match=r"does not hold AudioWAV/.*it holds VideoFlash/"):
        dataset("cremad", root=tmp_path)


def test_esc50(esc50: Path, lines: Write, tmp_path: Path) -> None:
    data = dataset("esc-50", root=tmp_path)
    assert list(data.ids) == ["1-100032-A-0", "5-9032-B-14", "2-1-A-49"]
    assert [sample.text for sample in data] == ["dog", "chirping birds", "hand saw"]
    assert data.labels() == {
        "sound": ["dog", "chirping_birds", "hand_saw"],
        "group": ["animals", "nature", "exterior"],
        "recording": ["100032", "9032", "1"],
        "fold": [1, 5, 2],
    }
    assert data[0].media[1] == 44100
    lines(tmp_path / "meta" / "esc50.csv", "filename,fold", "a.wav,1")
    with pytest.raises(EngineError, match="has no column target, category, src_file; download it again"):
        dataset("esc50", root=tmp_path)
    (tmp_path / "meta" / "esc50.csv").unlink()
    with pytest.raises(
        EngineError, match=r"does not hold meta/esc50\.csv and audio/ \(it holds audio/, meta/\)"
    ):
        dataset("esc50", root=tmp_path)


def test_voxceleb1(voxceleb1: Path, lines: Write, tmp_path: Path) -> None:
    clips = [
        "id10001/aaa/00001",
        "id10270/bbb/00001",
        "id10270/bbb/00002",
        "id10270/ccc/00001",
        "id10300/d/00007",
    ]
    data = dataset("voxceleb1", root=tmp_path)
    assert list(data.ids) == clips
    assert data.labels() == {
        "speaker": ["id10001", "id10270", "id10270", "id10270", "id10300"],
        "name": ["A.J._Buckley", "Eartha_Kitt", "Eartha_Kitt", "Eartha_Kitt", "Leonardo"],
        "gender": ["male", "female", "female", "female", "male"],
        "nationality": ["Ireland", "USA", "USA", "USA", "USA"],
        "set": ["dev", "test", "test", "test", "test"],
        "video": ["aaa", "bbb", "bbb", "ccc", "d"],
    }
    assert {sample.text for sample in as_text(data)} == {""}
    assert list(dataset("voxceleb:test", root=tmp_path / "wav", speakers=1, per_speaker=2).ids) == list(
        clips[1:3]
    )
    with pytest.raises(EngineError, match=r"no clip of .* belongs to split 'val'; it is dev or test"):
        dataset("voxceleb1", root=tmp_path, split="val")
    meta = (tmp_path / "vox1_meta.csv").read_text().splitlines()
    lines(tmp_path / "vox1_meta.csv", *meta[:2])
    with pytest.raises(EngineError, match=r"has no line for speaker \['id10270'\]"):
        dataset("voxceleb1", root=tmp_path)
    (tmp_path / "vox1_meta.csv").unlink()
    with pytest.raises(EngineError, match=r"does not hold .*vox1_meta\.csv"):
        dataset("voxceleb1", root=tmp_path)


def test_coco(coco: Path) -> None:
    data = dataset("coco", root=coco)
    assert (data.name, data.modality, list(data.ids)) == (
        "coco:val2017",
        "image",
        ["9", "25", "30", "42", "51"],
    )
    texts = [sample.text for sample in as_text(data)]
    assert texts == ["A man with cats.", "The dog.", "A crowd of cats.", "Nothing here.", ""]
    # mean box areas: 0.04, 0.5, 0.04, 0.04; boxes of one image at one place have no spread
    assert data.labels() == {
        "object_category": ["cat", "dog", "person", None, "dog"],
        "super_category": ["animal", "animal", "person", None, "animal"],
        "object_count": ["2-4", "1", "5-10", None, "11+"],
        "avg_obj_size": ["small", "large", "small", None, "small"],
        "spatial_spread": ["dispersed", "concentrated", "concentrated", None, "concentrated"],
        "lexical": ["a", "the", "a", "nothing", None],
    }
    assert data[3].media.size == (100, 80)
    assert media_sizes(data).tolist() == [8000.0] * 5
    assert list(dataset("coco:val2017", root=coco, limit=2, labels=["object_count"]).labels().values()) == [
        ["2-4", "1"]
    ]


def test_box_labels_by_hand() -> None:
    """Nine images of 100 x 100, mean box area k / 100; of odd k two boxes, whose spread grows with k."""
    boxes = {
        str(k): [(50 - 5 * k, 45, 10 * k, 10), (45 + 2 * k, 45, 10, 10 * k)]
        if k % 2
        else [(0, 0, 10 * k, 10)]
        for k in range(1, 10)
    }
    found = box_labels(boxes, dict.fromkeys([*boxes, "none"], (100, 100)))
    assert {key: labels["avg_obj_size"] for key, labels in found.items()} == {
        **dict.fromkeys("123", "small"),
        **dict.fromkeys("456", "medium"),
        **dict.fromkeys("789", "large"),
        "none": None,
    }
    # spreads 0 (four times), 0.01, 0.058, 0.112, 0.166, 0.219: cut at 0 and 0.076
    assert [found[key]["spatial_spread"] for key in "2468"] == ["concentrated"] * 4
    assert [found[key]["spatial_spread"] for key in "13579"] == ["moderate"] * 2 + ["dispersed"] * 3
    assert [found[str(k)]["object_count"] for k in (1, 2)] == ["2-4", "1"]
    counts = {str(n): [(0, 0, 1, 1)] * n for n in (1, 2, 4, 5, 10, 11, 40)}
    binned = box_labels(counts, dict.fromkeys(counts, (9, 9)))
    assert [binned[key]["object_count"] for key in counts] == [
        "1",
        "2-4",
        "2-4",
        "5-10",
        "5-10",
        "11+",
        "11+",
    ]


def test_coco_broken(coco: Path) -> None:
    captions = coco / "annotations" / "captions_val2017.json"
    whole = captions.read_bytes()
    captions.write_bytes(whole[:-5])
    with pytest.raises(EngineError, match=r"captions_val2017\.json is not JSON .*download it again"):
        dataset("coco", root=coco)
    captions.write_text('{"images": []}')
    with pytest.raises(EngineError, match=r"is not a COCO annotation file \(KeyError: 'annotations'\)"):
        dataset("coco", root=coco)
    captions.unlink()
    with pytest.raises(EngineError, match=r"does not hold val2017/, annotations/instances_val2017\.json and"):
        dataset("coco", root=coco)
    with pytest.raises(EngineError, match="does not hold train2017/"):
        dataset("coco:train2017", root=coco)


@pytest.mark.parametrize("where", [".", "questions", "questions1.2"])
def test_gqa(where: str, gqa: Path, tmp_path: Path) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    (gqa / "val_balanced_questions.json").rename(tmp_path / where / "val_balanced_questions.json")
    data = dataset("gqa", root=tmp_path)
    assert (data.name, list(data.ids)) == ("gqa:val", ["02", "01", "05"])
    assert [(s.prompt, s.text) for s in data] == [
        ("What is it?", "It is a dog."),
        ("Who sits?", "The man sits."),
        ("Is it red?", "Yes, it is red."),
    ]
    columns = {
        "answer": ["dog", "man", "yes"],
        "question_type": ["query", "query", "verify"],
        "semantic_type": ["obj", "rel", "attr"],
        "image": ["10", "2", "2"],
        "lexical": ["it", "the", "yes"],
    }
    assert data.labels() == columns
    questions = dataset("gqa:val_balanced", root=tmp_path, text="question", labels=[])
    assert [(s.prompt, s.text) for s in questions] == [
        (None, "What is it?"),
        (None, "Who sits?"),
        (None, "Is it red?"),
    ]
    assert [s.text for s in dataset("gqa", root=tmp_path, text="answer")] == ["dog", "man", "yes"]
    scene = {"width": 20, "height": 10, "objects": {"a": {"x": 0, "y": 0, "w": 10, "h": 10}}}
    empty = {"width": 20, "height": 10, "objects": {}}
    (tmp_path / "sceneGraphs").mkdir()
    (tmp_path / "sceneGraphs" / "val_sceneGraphs.json").write_text(json.dumps({"2": scene, "10": empty}))
    assert dataset("gqa", root=tmp_path).labels() == columns | {
        "object_count": [None, "1", "1"],
        "avg_obj_size": [None, "small", "small"],
        "spatial_spread": [None, "concentrated", "concentrated"],
    }
    with pytest.raises(
        EngineError, match=r"got text='caption'; expected one of fullAnswer, answer, question"
    ):
        dataset("gqa", root=tmp_path, text="caption")
    with pytest.raises(EngineError, match=r"does not hold testdev_balanced_questions\.json and images/"):
        dataset("gqa:testdev", root=tmp_path)
    (tmp_path / where / "val_balanced_questions.json").write_text('{"1": {"imageId": "2"}}')
    with pytest.raises(EngineError, match=r"is not GQA's \(KeyError"):
        dataset("gqa", root=tmp_path)


TEXTS = {
    "librispeech": ["HE BEGAN A TALE", "THE CAT"],
    "cremad": ["Don't forget a jacket.", "It's eleven o'clock."],
    "esc50": ["dog", "chirping birds"],
    "voxceleb1": ["", ""],
    "coco": ["A man with cats.", "The dog."],
    "gqa": ["It is a dog.", "The man sits."],
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_decode_nothing(name: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(name)
    for path in root.rglob("*"):
        if path.suffix in (".flac", ".wav", ".jpg"):
            path.write_bytes(b"")
    data = dataset(name, root=root)
    texts = as_text(data)
    assert [(sample.text, sample.media, sample.prompt) for sample in texts][:2] == [
        (text, None, None) for text in TEXTS[name]
    ]
    assert [sample.labels for sample in texts] == [
        {label: values[i] for label, values in data.labels().items()} for i in range(len(data))
    ]
    with pytest.raises(MediaError, match=r"\(the file is empty\)"):
        data[0]


def test_a_name_is_no_folder(
    coco: Path, monkeypatch: pytest.MonkeyPatch, picture: Write, tmp_path: Path
) -> None:
    picture(tmp_path / "here" / "coco" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(EngineError, match=r"needs root=.*for the folder coco itself, write \./coco"):
        dataset("coco")
    plain: Dataset = dataset("./coco")
    assert list(plain.ids) == ["a.png"]
    with pytest.raises(
        EngineError, match=r"no data set at cocos.*librispeech, cremad, .* with root=, or hf:org/name"
    ):
        dataset("cocos")
