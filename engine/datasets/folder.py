"""A data set from a folder, a table or a text file of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from modegap.engine.errors import EngineError

from .base import Dataset, Label, Modality
from .labels import Wanted, choose
from .media import modality_of
from .published import LOADERS
from .table import TABLE_SUFFIXES, Row, TableDataset, read_table

FILE_COLUMNS = ("file", "file_name", "path", "image", "audio")
TABLE_NAMES = ("metadata", "manifest", "labels", "index")


def open_path(
    path: Path,
    *,
    root: Path | None = None,
    media: str | None = None,
    text: str = "text",
    id: str = "id",
    prompt: str = "prompt",
    labels: Wanted | None = None,
    name: str | None = None,
    keep_missing: bool = False,
) -> Dataset:
    """The data set at `path`; see `dataset` for the forms it takes.

    Args:
        path: a folder, a CSV, TSV or JSONL file, or a text file.
        root: the folder that file names are relative to; the table's own folder unless given.
        media: the column of file names; the first of file, file_name, path, image, audio unless given.
        text: the column of target texts (transcript, caption, answer).
        id: the column of ids; file names, or else row numbers, serve where the table lacks it.
        prompt: the column of prompts, where the table has one.
        labels: the label columns to keep, optionally each with its kind; all columns without another use
            unless given.
        name: what provenance calls it; the file's or folder's name unless given.
        keep_missing: let rows stay whose file does not exist.

    Raises:
        EngineError: nothing found at `path`, a missing file or column, duplicated ids; names sample and
            remedy.
    """
    if path.is_dir():
        table = _find_table(path)
        if table is None:
            return _from_folder(path, name or path.resolve().name, labels)
        path = table
    if not path.is_file():
        raise EngineError(
            f"no data set at {path}{_near(path)}; give a folder, a CSV or JSONL file, a text file, "
            f"{', '.join(LOADERS)} with root=, or hf:org/name"
        )
    title = name or (path.stem if path.stem not in TABLE_NAMES else path.resolve().parent.name)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return _from_lines(path, title)
    base = path.parent if root is None else root
    rows = read_table(path)
    present = list(dict.fromkeys(key for row in rows for key in row))
    if media is None:
        media = next((column for column in FILE_COLUMNS if column in present), None)
    elif media not in present:
        raise EngineError(f"{path} has no column {media!r} for media= (it has {', '.join(present)})")
    if text not in present and (media is None or text != "text"):
        raise EngineError(
            f"{path} has no column {text!r} for text= (it has {', '.join(present) or 'no columns'}); "
            'name the column of the transcript, caption or answer with text="..."'
        )
    listed = [_row(row, index, len(rows), base, media, text, id, prompt) for index, row in enumerate(rows)]
    used = {media, text, id, prompt}
    columns = {
        key: [row.get(key) for row in rows] for key in present if key not in used or key in (labels or ())
    }
    modality = _one_modality(listed, title)
    return TableDataset(title, modality, listed, choose(columns, labels, title), keep_missing=keep_missing)


def _row(
    row: Mapping[str, Label],
    index: int,
    total: int,
    base: Path,
    media: str | None,
    text: str,
    id: str,
    prompt: str,
) -> Row:
    given = str(row.get(media) or "") if media is not None else ""
    own = row.get(id)
    label = str(own) if own not in (None, "") else given or f"{index:0{len(str(total))}d}"
    if media is not None and not given:
        raise EngineError(
            f"row {index + 1} (sample {label!r}) has no {media!r}; name its file or remove the row"
        )
    value = row.get(text)
    return Row(
        id=label,
        text="" if value is None else str(value),
        file=base / given if given else None,
        prompt=str(row[prompt]) if row.get(prompt) else None,
    )


def _from_folder(path: Path, name: str, labels: Wanted | None) -> Dataset:
    files = sorted(found for found in path.rglob("*") if found.is_file() and modality_of(found) is not None)
    if not files:
        raise EngineError(
            f"{path} holds no table and no image or audio files; add a metadata.csv (file,text,...)"
        )
    rows = []
    for found in files:
        beside = found.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        rows.append(Row(found.relative_to(path).as_posix(), text, found))
    folders = [found.parent.relative_to(path).as_posix() for found in files]
    columns = {"folder": folders} if any(folder != "." for folder in folders) else {}
    return TableDataset(name, _one_modality(rows, name), rows, choose(columns, labels, name))


def _from_lines(path: Path, name: str) -> Dataset:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise EngineError(
            f"{path} is no UTF-8 text ({error.reason}); give a CSV, JSONL or text file"
        ) from error
    width = len(str(len(lines)))
    return TableDataset(name, "text", [Row(f"{i:0{width}d}", line) for i, line in enumerate(lines)], {})


def _find_table(path: Path) -> Path | None:
    tables = sorted(found for found in path.iterdir() if found.suffix.lower() in TABLE_SUFFIXES)
    named = [table for stem in TABLE_NAMES for table in tables if table.stem == stem]
    if len(tables) > 1 and not named:
        raise EngineError(
            f"{path} holds {len(tables)} tables ({', '.join(table.name for table in tables[:5])}); name one "
            "of them"
        )
    return named[0] if named else (tables[0] if tables else None)


def _one_modality(rows: Sequence[Row], name: str) -> Modality:
    found: dict[Modality, str] = {}
    for row in rows:
        if row.file is None:
            found.setdefault("text", row.id)
            continue
        modality = modality_of(row.file)
        if modality is None:
            raise EngineError(
                f"data set {name}: {row.file} of sample {row.id!r} is neither image nor audio; "
                "convert it to PNG, JPEG or WAV"
            )
        found.setdefault(modality, row.id)
    if len(found) > 1:
        listed = ", ".join(f"{modality} (sample {sample!r})" for modality, sample in found.items())
        raise EngineError(f"data set {name} mixes {listed}; make one data set for each")
    return next(iter(found), "text")


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir()], n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""
