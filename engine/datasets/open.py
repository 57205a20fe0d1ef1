"""`dataset(...)`: a data set from a folder, a table, a text file or a list."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from modegap.engine.errors import EngineError

from .base import Dataset, Label, Modality, Sample
from .media import modality_of
from .memory import ListDataset
from .table import TABLE_SUFFIXES, Kind, Row, TableDataset, label_columns, read_table

FILE_COLUMNS = ("file", "file_name", "path", "image", "audio")
TABLE_NAMES = ("metadata", "manifest", "labels", "index")


def dataset(
    spec: str | Path | Sequence[Sample],
    *,
    root: str | Path | None = None,
    file: str | None = None,
    text: str = "text",
    id: str = "id",
    prompt: str = "prompt",
    labels: Sequence[str] | Mapping[str, Kind] | None = None,
    name: str | None = None,
) -> Dataset:
    """A data set.

    Args:
        spec: one of
            a list of `Sample`s;
            a CSV, TSV or JSONL file, a row a sample;
            a folder with one such table (`metadata.csv`, `manifest.jsonl`, ... or the only one in it);
            a folder of images or WAV files without a table: the id is the path, the text is that of a `.txt`
            file beside the media file (empty without one), the label `folder` is the folder it lies in;
            a text file, a line a sample.
        root: the folder that file names are relative to; the table's own folder unless given.
        file: the column of file names; the first of file, file_name, path, image, audio unless given.
        text: the column of target texts (transcript, caption, answer).
        id: the column of ids; file names, or else row numbers, serve where the table lacks it.
        prompt: the column of prompts, where the table has one.
        labels: the label columns to keep, optionally each with its kind ("category" or "number"); all columns
            without another use unless given.
        name: what provenance calls it; the file's or folder's name unless given.

    Raises:
        EngineError: nothing found at `spec`, a missing file or column, duplicated ids; names sample and
            remedy.
    """
    if not isinstance(spec, str | Path):
        return ListDataset(spec, name or "list")
    path = Path(spec).expanduser()
    if path.is_dir():
        table = _find_table(path)
        if table is None:
            return _from_folder(path, name or path.resolve().name)
        path = table
    if not path.is_file():
        raise EngineError(
            f"no data set at {path}{_near(path)}; give a folder, a CSV or JSONL file, or a text file"
        )
    title = name or (path.stem if path.stem not in TABLE_NAMES else path.resolve().parent.name)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return _from_lines(path, title)
    base = path.parent if root is None else Path(root).expanduser()
    return _from_table(path, base, title, file, text, id, prompt, labels)


def _from_table(
    path: Path,
    base: Path,
    name: str,
    file: str | None,
    text: str,
    id: str,
    prompt: str,
    labels: Sequence[str] | Mapping[str, Kind] | None,
) -> Dataset:
    rows = read_table(path)
    present = list(dict.fromkeys(key for row in rows for key in row))
    if file is None:
        file = next((column for column in FILE_COLUMNS if column in present), None)
    elif file not in present:
        raise EngineError(f"{path} has no column {file!r} for file= (it has {', '.join(present)})")
    if text not in present and (file is None or text != "text"):
        raise EngineError(
            f"{path} has no column {text!r} for text= (it has {', '.join(present) or 'no columns'}); "
            'name the column of the transcript, caption or answer with text="..."'
        )
    listed = [_row(row, index, len(rows), base, file, text, id, prompt) for index, row in enumerate(rows)]
    used = frozenset({file or "", text, id, prompt})
    return TableDataset(name, _one_modality(listed, name), listed, label_columns(rows, used, labels, name))


def _row(
    row: Mapping[str, Label],
    index: int,
    total: int,
    base: Path,
    file: str | None,
    text: str,
    id: str,
    prompt: str,
) -> Row:
    given = str(row.get(file) or "") if file is not None else ""
    own = row.get(id)
    label = str(own) if own not in (None, "") else given or f"{index:0{len(str(total))}d}"
    if file is not None and not given:
        raise EngineError(
            f"row {index + 1} (sample {label!r}) has no {file!r}; name its file or remove the row"
        )
    value = row.get(text)
    return Row(
        id=label,
        text="" if value is None else str(value),
        file=base / given if given else None,
        prompt=str(row[prompt]) if row.get(prompt) else None,
    )


def _from_folder(path: Path, name: str) -> Dataset:
    files = sorted(found for found in path.rglob("*") if found.is_file() and modality_of(found) is not None)
    if not files:
        raise EngineError(
            f"{path} holds no table and no image or audio files; add a metadata.csv (file,text,...)"
        )
    rows = []
    for found in files:
        beside = found.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""
        rows.append(Row(found.relative_to(path).as_posix(), text, found, None))
    folders = [found.parent.relative_to(path).as_posix() for found in files]
    columns = {"folder": folders} if any(folder != "." for folder in folders) else {}
    return TableDataset(name, _one_modality(rows, name), rows, columns)


def _from_lines(path: Path, name: str) -> Dataset:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise EngineError(
            f"{path} is no UTF-8 text ({error.reason}); give a CSV, JSONL or text file"
        ) from error
    width = len(str(len(lines)))
    return TableDataset(
        name, "text", [Row(f"{i:0{width}d}", line, None, None) for i, line in enumerate(lines)], {}
    )


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
