"""A data set from a table of rows: media paths, texts, prompts and labels."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modegap.engine.errors import EngineError

from .base import Label, Modality, Sample
from .media import Source, decode
from .memory import check_ids

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, media not yet decoded."""

    id: str
    text: str
    file: Path | None = None
    prompt: str | None = None


class TableDataset:
    """Samples listed in a table; media are decoded when a sample is asked for.

    Args:
        name: what provenance calls it.
        modality: of every file; `text` when the rows name no files.
        rows: one a sample.
        columns: label columns, each as long as `rows`.
        keep_missing: let rows stay whose file does not exist; asking for such a sample is an error.

    Raises:
        EngineError: no rows, duplicated ids, or a file that does not exist (names the sample).
    """

    def __init__(
        self,
        name: str,
        modality: Modality,
        rows: Sequence[Row],
        columns: Mapping[str, Sequence[Label]],
        *,
        keep_missing: bool = False,
    ) -> None:
        """Checks ids and files; decodes nothing."""
        if not rows:
            raise EngineError(f"data set {name} has no rows; nothing to capture")
        self.name = name
        self.modality: Modality = modality
        self.ids: Sequence[str] = tuple(row.id for row in rows)
        check_ids(self.ids, name)
        missing = [] if keep_missing else _missing(rows)
        if missing:
            raise EngineError(
                f"data set {name}: {missing[0].file} of sample {missing[0].id!r} does not exist "
                f"({len(missing)} of its {len(rows)} files are missing); check root=, remove the rows, or go on "
                "without them (skip_bad)"
            )
        self._rows = tuple(rows)
        self._columns = dict(columns)

    def __len__(self) -> int:
        """Samples in the data set."""
        return len(self._rows)

    def row(self, index: int) -> Sample:
        """The sample without its media: nothing is decoded."""
        row = self._rows[index]
        labels = {name: values[index] for name, values in self._columns.items()}
        return Sample(row.id, row.text, None, row.prompt, labels)

    def source(self, index: int) -> tuple[Source, str] | None:
        """Where the sample's media lie, a file or their bytes, and what an error calls them; None for text."""
        file = self._rows[index].file
        return None if file is None else (file, str(file))

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its media decoded.

        Raises:
            MediaError: they cannot be.
        """
        bare, found = self.row(index), self.source(index)
        if found is None:
            return bare
        media = decode(found[0], self.modality, bare.id, name=found[1])
        return Sample(bare.id, bare.text, media, bare.prompt, bare.labels)

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        return (self[index] for index in range(len(self)))

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns, each as long as the data set."""
        return self._columns


def read_table(path: Path) -> list[dict[str, Label]]:
    """The rows of a CSV, TSV (first line: column names) or JSONL file (one object a line).

    Raises:
        EngineError: the file cannot be parsed; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if path.suffix.lower() == ".jsonl":
                return [_json_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
            reader = csv.DictReader(lines, delimiter="," if path.suffix.lower() == ".csv" else "\t")
            rows: list[dict[str, Label]] = []
            for row in reader:
                if None in row or None in row.values():
                    raise EngineError(
                        f"{path} line {reader.line_num} has another number of fields than the "
                        f"{len(reader.fieldnames or ())} column names; quote fields that contain the separator"
                    )
                rows.append(dict(row))
            return rows
    except UnicodeDecodeError as error:
        raise EngineError(f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8") from error


def _missing(rows: Sequence[Row]) -> list[Row]:
    """Rows whose file does not exist; one listing a folder, for a question a file is slow on network disks."""
    folders: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        if row.file is not None:
            folders[row.file.parent].append(row)
    found: set[Path] = set()
    for folder, members in folders.items():
        there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        found.update(row.file for row in members if row.file is not None and row.file.name in there)
    return [row for row in rows if row.file is not None and row.file not in found]


def _json_row(path: Path, number: int, line: str) -> dict[str, Label]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise EngineError(
            f"{path} line {number} is not JSON ({error.msg}); expected one object a line"
        ) from error
    if not isinstance(row, dict):
        raise EngineError(f"{path} line {number} is not a JSON object; expected one object a line")
    nested = [key for key, value in row.items() if not isinstance(value, str | int | float | None)]
    if nested:
        raise EngineError(f"{path} line {number}: {nested[0]!r} is nested; labels are text, a number or null")
    return row
