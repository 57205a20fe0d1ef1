"""Generated media and tables for the data set tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Write = Callable[..., Path]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """A quiet sine, float32."""
    return (0.25 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def sound() -> Callable[..., Path]:
    """`sound(path, seconds=0.1, rate=16000, hertz=440)` writes a tone in the format of the suffix."""

    def write(path: Path, seconds: float = 0.1, rate: int = 16000, hertz: float = 440.0) -> Path:
        import soundfile

        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(seconds, rate, hertz), rate)
        return path

    return write


@pytest.fixture
def picture() -> Callable[..., Path]:
    """`picture(path, width=8, height=6, value=100)` writes a plain red image."""

    def write(path: Path, width: int = 8, height: int = 6, value: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (value, 0, 0)).save(path)
        return path

    return write


@pytest.fixture
def lines() -> Callable[..., Path]:
    """`lines(path, *lines)` writes a text file."""

    def write(path: Path, *rows: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        return path

    return write


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


@pytest.fixture
def cremad(sound: Write, tmp_path: Path) -> Path:
    for name in (
        "1001_DFA_ANG_XX",
        "1001_IEO_HAP_HI",
        "1040_ITH_SAD_X",
        "1002_WSI_NEU_MD",
        "1002_TAI_FEA_LO",
    ):
        sound(tmp_path / "AudioWAV" / f"{name}.wav", seconds=0.02)
    return tmp_path


@pytest.fixture
def esc50(sound: Write, lines: Write, tmp_path: Path) -> Path:
    rows = (
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "5-9032-B-14.wav,5,14,chirping_birds,False,9032,B",
        "2-1-A-49.wav,2,49,hand_saw,False,1,A",
    )
    lines(tmp_path / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)
    for row in rows:
        sound(tmp_path / "audio" / row.partition(",")[0], seconds=0.02, rate=44100)
    return tmp_path


@pytest.fixture
def voxceleb1(sound: Write, lines: Write, tmp_path: Path) -> Path:
    clips = ("10001/aaa/00001", "10270/bbb/00001", "10270/bbb/00002", "10270/ccc/00001", "10300/d/00007")
    for clip in clips:
        sound(tmp_path / "wav" / f"id{clip}.wav", seconds=0.02)
    lines(
        tmp_path / "vox1_meta.csv",
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet",
        "id10001\tA.J._Buckley\tm\tIreland\tdev",
        "id10270\tEartha_Kitt\tf\tUSA\ttest",
        "id10300\tLeonardo\tm\tUSA\ttest",
    )
    return tmp_path


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


@pytest.fixture
def gqa(picture: Write, tmp_path: Path) -> Path:
    def question(image: str, ask: str, answer: str, full: str, structural: str, semantic: str) -> dict:
        types = {"structural": structural, "semantic": semantic, "detailed": "x"}
        return {"imageId": image, "question": ask, "answer": answer, "fullAnswer": full, "types": types}

    questions = {
        "05": question("2", "Is it red?", "yes", "Yes, it is red.", "verify", "attr"),
        "02": question("10", "What is it?", "dog", "It is a dog.", "query", "obj"),
        "01": question("2", "Who sits?", "man", "The man sits.", "query", "rel"),
    }
    (tmp_path / "val_balanced_questions.json").write_text(json.dumps(questions))
    for image in ("2", "10"):
        picture(tmp_path / "images" / f"{image}.jpg", 20, 10)
    return tmp_path
