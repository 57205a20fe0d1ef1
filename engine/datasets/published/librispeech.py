"""LibriSpeech (Panayotov et al., ICASSP 2015; openslr.org/12)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..labels import Wanted, choose, lexical
from ..table import Row, TableDataset
from .layout import find, need

_GENDERS = {"M": "male", "F": "female"}


def librispeech(
    root: Path, *, split: str = "test-clean", labels: Wanted | None = None, keep_missing: bool = False
) -> TableDataset:
    """The utterances of a split in the order of speaker, chapter and number.

    Layout: `LibriSpeech/<split>/<speaker>/<chapter>/` with `<speaker>-<chapter>.trans.txt` and a FLAC file for
    each of its lines, and `LibriSpeech/SPEAKERS.TXT`; the root is the folder LibriSpeech or the one it lies in.

    Text: the transcript as it is published, upper case. Labels: `speaker`, `chapter`, `lexical`, and `gender`
    where SPEAKERS.TXT is there.

    Raises:
        EngineError: another layout, a recording without transcript or a transcript without recording.
    """
    name = f"librispeech:{split}"
    expected = f"LibriSpeech/{split}/<speaker>/<chapter>/*.trans.txt"
    folder = find((root / "LibriSpeech" / split, root / split), name, root, expected)
    scripts = sorted(folder.glob("*/*/*.trans.txt"), key=lambda path: _numbers(path.parent))
    need(
        bool(scripts),
        f"{name}: {folder} holds no <speaker>/<chapter>/*.trans.txt; unpack {split}.tar.gz there",
    )
    rows: list[Row] = []
    for script in scripts:
        rows += _chapter(script, name)
    speakers = [row.id.partition("-")[0] for row in rows]
    columns: dict[str, list[str | None]] = {
        "speaker": [*speakers],
        "chapter": [row.id.split("-")[1] for row in rows],
        "lexical": lexical([row.text for row in rows])[0],
    }
    genders = _genders(folder.parent / "SPEAKERS.TXT")
    if genders:
        columns["gender"] = [genders.get(speaker) for speaker in speakers]
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "audio", rows, chosen, keep_missing=keep_missing)


def _chapter(script: Path, name: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
        utterance, _, text = line.partition(" ")
        need(
            utterance.count("-") == 2 and bool(text.strip()),
            f"{name}: line {number} of {script} is not `<speaker>-<chapter>-<number> TEXT`; unpack it again",
        )
        rows.append(Row(utterance, text.strip(), script.parent / f"{utterance}.flac"))
    spoken = {path.stem for path in script.parent.glob("*.flac")} - {row.id for row in rows}
    need(
        not spoken, f"{name}: {script} has no line for {min(spoken, default='')}.flac; unpack the split again"
    )
    return rows


def _genders(path: Path) -> Mapping[str, str]:
    """Speaker to gender, from lines `1089 | M | test-clean | 18.37 | Name`; `;` starts a comment."""
    found: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = [field.strip() for field in line.split("|")]
            if not line.startswith(";") and len(fields) > 1 and fields[1] in _GENDERS:
                found[fields[0]] = _GENDERS[fields[1]]
    return found


def _numbers(folder: Path) -> tuple[tuple[int, str], ...]:
    """Sorts 61 before 1089, and anything that is no number after them."""
    parts = (folder.parent.name, folder.name)
    return tuple((int(part) if part.isdigit() else 10**9, part) for part in parts)
