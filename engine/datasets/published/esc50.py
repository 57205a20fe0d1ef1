"""ESC-50 (Piczak, ACM Multimedia 2015; github.com/karolpiczak/ESC-50)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base import Label
from ..labels import Wanted, choose
from ..table import Row, TableDataset, read_table
from .layout import find, need

# Targets come in five blocks of ten.
GROUPS = ("animals", "nature", "human", "interior", "exterior")


def esc50(root: Path, *, labels: Wanted | None = None, keep_missing: bool = False) -> TableDataset:
    """The recordings in the order of the published table.

    Layout: `meta/esc50.csv` and `audio/*.wav` under the root.

    Text: the class in words ("chirping birds"); there are no transcripts. Labels: `sound` (50 classes), `group`
    (5), `recording` (the source that several clips are cut from: keep it on one side of a split) and `fold`
    (1 to 5, a number).

    Raises:
        EngineError: another layout, or a table without the published columns.
    """
    name = "esc50"
    path = find((root / "meta" / "esc50.csv",), name, root, "meta/esc50.csv and audio/")
    table = read_table(path)
    present = table[0].keys() if table else ()
    lacking = [key for key in ("filename", "fold", "target", "category", "src_file") if key not in present]
    need(not lacking, f"{name}: {path} has no column {', '.join(lacking)}; download it again")
    sounds = [str(row["category"]) for row in table]
    rows = [
        Row(Path(str(row["filename"])).stem, sound.replace("_", " "), root / "audio" / str(row["filename"]))
        for row, sound in zip(table, sounds, strict=True)
    ]
    columns: dict[str, Sequence[Label]] = {
        "sound": sounds,
        "group": [GROUPS[int(str(row["target"])) // 10] for row in table],
        "recording": [str(row["src_file"]) for row in table],
        "fold": [int(str(row["fold"])) for row in table],
    }
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "audio", rows, chosen, keep_missing=keep_missing)
