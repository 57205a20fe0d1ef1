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


@pytest.fixture
def librispeech(sound: Write, lines: Write, tmp_path: Path) -> Path:
    base = tmp_path / "LibriSpeech"
    texts = {"1089-134686": ["HE HOPED", "STUFF IT"], "1089-99": ["THE CAT"], "61-70968": ["HE BEGAN A TALE"]}
    for chapter, spoken in texts.items():
        folder = base / "test-clean" / chapter.replace("-", "/")
        names = [f"{chapter}-{i:04d}" for i in range(len(spoken))]
        lines(folder / f"{chapter}.trans.txt", *(f"{n} {t}" for n, t in zip(names, spoken, strict=True)))
        for name in names:
            sound(folder / f"{name}.flac", seconds=0.05)
    lines(
        base / "SPEAKERS.TXT",
        "; ID  |SEX| SUBSET           |MINUTES| NAME",
        "61   | M | test-clean       | 8.08  | Paul-Gabriel Wiener",
        "1089 | F | test-clean       | 8.03  | Somebody | Else",
    )
    return tmp_path


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
        EngineError, match="no label column 'emotion' .it has speaker, chapter, lexical, gender"
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
    with pytest.raises(EngineError, match="line 1 of .* is not"):
        dataset("librispeech", root=librispeech)
    (librispeech / "LibriSpeech" / "test-other").mkdir()
    with pytest.raises(
        EngineError, match=r"holds no <speaker>/<chapter>/\*\.trans\.txt; unpack test-other\.tar\.gz"
    ):
        dataset("librispeech:test-other", root=librispeech)


CREMAD = ("1001_DFA_ANG_XX", "1001_IEO_HAP_HI", "1040_ITH_SAD_X", "1002_WSI_NEU_MD", "1002_TAI_FEA_LO")


@pytest.mark.parametrize("folder", ["AudioWAV", "."])
def test_cremad(folder: str, sound: Write, lines: Write, tmp_path: Path) -> None:
    for name in CREMAD:
        sound(tmp_path / folder / f"{name}.wav", seconds=0.02)
    data = dataset("CREMA-D", root=tmp_path)
    assert list(data.ids) == sorted(CREMAD)
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


ESC50 = ("filename,fold,target,category,esc10,src_file,take",)


def test_esc50(sound: Write, lines: Write, tmp_path: Path) -> None:
    rows = (
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "5-9032-B-14.wav,5,14,chirping_birds,False,9032,B",
        "2-1-A-49.wav,2,49,hand_saw,False,1,A",
    )
    lines(tmp_path / "meta" / "esc50.csv", *ESC50, *rows)
    for row in rows:
        sound(tmp_path / "audio" / row.partition(",")[0], seconds=0.02, rate=44100)
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


VOX = (
    "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet",
    "id10001\tA.J._Buckley\tm\tIreland\tdev",
    "id10270\tEartha_Kitt\tf\tUSA\ttest",
    "id10300\tLeonardo\tm\tUSA\ttest",
)


def test_voxceleb1(sound: Write, lines: Write, tmp_path: Path) -> None:
    clips = (
        "id10001/aaa/00001",
        "id10270/bbb/00001",
        "id10270/bbb/00002",
        "id10270/ccc/00001",
        "id10300/d/00007",
    )
    for clip in clips:
        sound(tmp_path / "wav" / f"{clip}.wav", seconds=0.02)
    with pytest.raises(EngineError, match=r"does not hold .*vox1_meta\.csv"):
        dataset("voxceleb1", root=tmp_path)
    lines(tmp_path / "vox1_meta.csv", *VOX)
    data = dataset("voxceleb1", root=tmp_path)
    assert list(data.ids) == list(clips)
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
    with pytest.raises(EngineError, match="no clip of .* belongs to split 'val'; it is dev or test"):
        dataset("voxceleb1", root=tmp_path, split="val")
    lines(tmp_path / "vox1_meta.csv", *VOX[:2])
    with pytest.raises(EngineError, match=r"has no line for speaker \['id10270'\]"):
        dataset("voxceleb1", root=tmp_path)


def coco_files(
    root: Path, picture: Write, boxes: dict[int, list[tuple]], captions: dict[int, list[str]]
) -> None:
    """Images of 100 x 80; a box: (x, y, w, h, category, crowd, area)."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 100, "height": 80} for i in boxes]
    for image in images:
        picture(root / "val2017" / image["file_name"], 100, 80)
    listed = [
        {"image_id": i, "bbox": list(box[:4]), "category_id": box[4], "iscrowd": box[5], "area": box[6]}
        for i, found in boxes.items()
        for box in found
    ]
    categories = [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 17, "name": "cat", "supercategory": "animal"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
    ]
    spoken = [
        {"image_id": i, "id": 100 * i + place, "caption": text}
        for i, texts in captions.items()
        for place, text in enumerate(texts)
    ]
    (root / "annotations").mkdir()
    instances = {"images": images[::-1], "annotations": listed, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(instances))
    said = {"images": images, "annotations": spoken[::-1]}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(said))


@pytest.fixture
def coco(picture: Write, tmp_path: Path) -> Path:
    centre, corner = (40, 32, 20, 16), (0, 0, 20, 16)
    boxes = {
        # the two cats cover more than the larger person; the crowd counts for nothing
        9: [(*centre, 1, 0, 300), (*corner, 17, 0, 200), (*corner, 17, 0, 150), (0, 0, 100, 80, 18, 1, 8000)],
        25: [(0, 0, 50, 80, 18, 0, 1.5)],
        # a tie goes to the lower category id
        30: [(*corner, 17, 0, 10), (*corner, 1, 0, 10)] * 3,
        42: [],
        51: [(*centre, 18, 0, 10)] * 11,
    }
    captions = {
        9: ["A man  with\ncats.", "Second."],
        25: ["The dog."],
        30: ["A crowd of cats."],
        42: ["Nothing here."],
    }
    coco_files(tmp_path, picture, boxes, captions)
    return tmp_path


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


def gqa_files(root: Path, picture: Write, where: str) -> None:
    def question(image: str, ask: str, answer: str, full: str, structural: str, semantic: str) -> dict:
        types = {"structural": structural, "semantic": semantic, "detailed": "x"}
        return {"imageId": image, "question": ask, "answer": answer, "fullAnswer": full, "types": types}

    questions = {
        "05": question("2", "Is it red?", "yes", "Yes, it is red.", "verify", "attr"),
        "02": question("10", "What is it?", "dog", "It is a dog.", "query", "obj"),
        "01": question("2", "Who sits?", "man", "The man sits.", "query", "rel"),
    }
    (root / where).mkdir(exist_ok=True)
    (root / where / "val_balanced_questions.json").write_text(json.dumps(questions))
    for image in ("2", "10"):
        picture(root / "images" / f"{image}.jpg", 20, 10)


@pytest.mark.parametrize("where", [".", "questions", "questions1.2"])
def test_gqa(where: str, picture: Write, tmp_path: Path) -> None:
    gqa_files(tmp_path, picture, where)
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


def test_texts_of_a_published_data_set_decode_nothing(coco: Path) -> None:
    for image in (coco / "val2017").iterdir():
        image.write_bytes(b"")
    data = dataset("coco", root=coco)
    assert [sample.media for sample in as_text(data)] == [None] * 5
    with pytest.raises(MediaError, match=r"000000000009\.jpg of sample '9' \(the file is empty\)"):
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
        EngineError, match="no data set at cocos.*librispeech, cremad, .* with root=, or hf:org/name"
    ):
        dataset("cocos")
