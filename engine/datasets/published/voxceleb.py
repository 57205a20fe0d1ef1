"""VoxCeleb1 (Nagrani et al., Interspeech 2017)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from ..base import Label
from ..labels import Wanted, choose
from ..table import Row, TableDataset
from .layout import find, need

_GENDERS = {"m": "male", "f": "female"}


def voxceleb1(
    root: Path,
    *,
    split: str | None = None,
    speakers: int | None = None,
    per_speaker: int | None = None,
    labels: Wanted | None = None,
    keep_missing: bool = False,
) -> TableDataset:
    """The clips by speaker, video and number.

    Layout: `wav/id10001/<video>/00001.wav` under the root (or the speakers' folders in the root itself) and
    `vox1_meta.csv` in the root or beside `wav`.

    There are no transcripts: texts are empty. Labels: `speaker` (the id), `name`, `gender`, `nationality`, `video`
    (keep one on one side of a split), `set` (dev or test).

    Args:
        root: the folder.
        split: `dev` or `test`, by the table; both unless given.
        speakers: only the first so many speakers (the published configuration takes 40).
        per_speaker: only the first so many clips of each (there 100).
        labels: label columns to keep; all unless given.
        keep_missing: as for every data set; here files are found by looking, so none is missing.

    Raises:
        EngineError: another layout, a speaker the table lacks, or a split without clips.
    """
    name = "voxceleb1" if split is None else f"voxceleb1:{split}"
    expected = "wav/id10001/<video>/00001.wav and vox1_meta.csv"
    folder = root / "wav" if (root / "wav").is_dir() else root
    files = sorted(folder.glob("id*/*/*.wav"))
    if not files:
        find((), name, root, expected)
    meta = find((root / "vox1_meta.csv", folder.parent / "vox1_meta.csv"), name, root, expected)
    table = _meta(meta, name)
    unknown = sorted({path.parts[-3] for path in files} - table.keys())
    need(not unknown, f"{name}: {meta} has no line for speaker {unknown[:1]}; download it again")
    if split is not None:
        files = [path for path in files if table[path.parts[-3]]["set"] == split]
        need(bool(files), f"{name}: no clip of {folder} belongs to split {split!r}; it is dev or test")
    by_speaker = [list(clips) for _, clips in groupby(files, key=lambda path: path.parts[-3])]
    files = [path for clips in by_speaker[:speakers] for path in clips[:per_speaker]]
    rows = [Row(path.relative_to(folder).with_suffix("").as_posix(), "", path) for path in files]
    columns: dict[str, Sequence[Label]] = {"speaker": [path.parts[-3] for path in files]}
    for label in ("name", "gender", "nationality", "set"):
        columns[label] = [table[path.parts[-3]][label] for path in files]
    columns["video"] = [path.parts[-2] for path in files]
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "audio", rows, chosen, keep_missing=keep_missing)


def _meta(path: Path, name: str) -> Mapping[str, Mapping[str, str | None]]:
    """Speaker id to its row; the published table has tabs between its fields, copies of it commas."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
        lines.seek(0)
        reader = csv.DictReader(lines, delimiter="\t" if "\t" in first else ",")
        fields = {str(field).strip(): str(field) for field in reader.fieldnames or ()}
        wanted = ("VoxCeleb1 ID", "VGGFace1 ID", "Gender", "Nationality", "Set")
        lacking = [key for key in wanted if key not in fields]
        need(not lacking, f"{name}: {path} has no column {', '.join(lacking)}; download vox1_meta.csv again")
        found: dict[str, dict[str, str | None]] = {}
        for row in reader:
            speaker, called, gender, nation, part = ((row[fields[key]] or "").strip() for key in wanted)
            found[speaker] = {
                "name": called or None,
                "gender": _GENDERS.get(gender.lower()),
                "nationality": nation or None,
                "set": part or None,
            }
        return found
