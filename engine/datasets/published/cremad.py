"""CREMA-D (Cao et al., IEEE Transactions on Affective Computing 2014; github.com/CheyneyComputerScience/CREMA-D)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from modegap.engine.errors import EngineError

from ..base import Label
from ..labels import Wanted, choose, lexical
from ..table import Row, TableDataset, read_table
from .layout import find, need

SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
# The published probes and prompts use these names.
EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sadness",
}
# One published file, 1040_ITH_SAD_X.wav, has a single X.
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified", "X": "unspecified"}
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")
_DEMOGRAPHICS = {"Age": "age", "Sex": "gender", "Race": "race", "Ethnicity": "ethnicity"}


def cremad(root: Path, *, labels: Wanted | None = None, keep_missing: bool = False) -> TableDataset:
    """The clips by name.

    Layout: `AudioWAV/<speaker>_<sentence>_<emotion>_<level>.wav` under the root, or the files in the root
    itself; `VideoDemographics.csv` beside them or above is optional.

    Text: the sentence spoken. Labels: `speaker`, `sentence` (its code), `emotion`, `level`, `lexical`; with the
    demographics also `age` (a number), `gender`, `race`, `ethnicity`.

    Raises:
        EngineError: another layout, or a file name that is not in this form.
    """
    name = "cremad"
    folder = root / "AudioWAV" if (root / "AudioWAV").is_dir() else root
    files = sorted(folder.glob("*.wav"))
    if not files:
        find((), name, root, "AudioWAV/1001_DFA_ANG_XX.wav and so on")
    parts = [_parts(path) for path in files]
    texts = [SENTENCES[sentence] for _, sentence, _, _ in parts]
    rows = [Row(path.stem, text, path) for path, text in zip(files, texts, strict=True)]
    columns: dict[str, Sequence[Label]] = {
        "speaker": [speaker for speaker, _, _, _ in parts],
        "sentence": [sentence for _, sentence, _, _ in parts],
        "emotion": [EMOTIONS[emotion] for _, _, emotion, _ in parts],
        "level": [LEVELS[level] for _, _, _, level in parts],
        "lexical": lexical(texts)[0],
    }
    about = next((p for at in (root, folder.parent) if (p := at / "VideoDemographics.csv").is_file()), None)
    if about is not None:
        columns |= _demographics(about, columns["speaker"], name)
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "audio", rows, chosen, keep_missing=keep_missing)


def _parts(path: Path) -> tuple[str, str, str, str]:
    found = _NAME.fullmatch(path.stem)
    if found is not None:
        speaker, sentence, emotion, level = found.groups()
        if sentence in SENTENCES and emotion in EMOTIONS and level in LEVELS:
            return speaker, sentence, emotion, level
    raise EngineError(
        f"cremad: {path} is not named <speaker>_<sentence>_<emotion>_<level>.wav as 1001_DFA_ANG_XX.wav is; move "
        "it elsewhere, or read the folder as a plain one"
    )


def _demographics(path: Path, speakers: Sequence[Label], name: str) -> dict[str, list[Label]]:
    table = read_table(path)
    present = table[0].keys() if table else ()
    lacking = [key for key in ("ActorID", *_DEMOGRAPHICS) if key not in present]
    need(not lacking, f"{name}: {path} has no column {', '.join(lacking)}; download it again or remove it")
    actors = {str(row["ActorID"]): row for row in table}
    columns: dict[str, list[Label]] = {}
    for key, label in _DEMOGRAPHICS.items():
        values = [actors.get(str(speaker), {}).get(key) or None for speaker in speakers]
        columns[label] = [v.lower() if isinstance(v, str) and label != "age" else v for v in values]
    columns["age"] = [None if value is None else int(value) for value in columns["age"]]
    return columns
