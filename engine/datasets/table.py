"""A data set from a table of rows: media paths, texts, prompts and labels."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modegap.engine.errors import EngineError

from .base import Label, Modality, Sample
from .media import decode
from .memory import check_ids

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl"})
Kind = Literal["category", "number"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, media not yet decoded."""

    id: str
    text: str
    file: Path | None
    prompt: str | None


class TableDataset:
    """Samples listed in a table; media are decoded when a sample is asked for.

    Args:
        name: what provenance calls it.
        modality: of every file; `text` when the rows name no files.
        rows: one a sample.
        columns: label columns, each as long as `rows`.

    Raises:
        EngineError: no rows, duplicated ids, or a file that does not exist (names the sample).
    """

    def __init__(
        self, name: str, modality: Modality, rows: Sequence[Row], columns: Mapping[str, Sequence[Label]]
    ) -> None:
        """Checks ids and files; decodes nothing."""
        if not rows:
            raise EngineError(f"data set {name} has no rows; nothing to capture")
        self.name = name
        self.modality: Modality = modality
        self.ids: Sequence[str] = tuple(row.id for row in rows)
        check_ids(self.ids, name)
        missing = [row for row in rows if row.file is not None and not row.file.is_file()]
        if missing:
            raise EngineError(
                f"data set {name}: {missing[0].file} of sample {missing[0].id!r} does not exist "
                f"({len(missing)} "
                "of its files are missing); check root= or remove the rows"
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

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its media decoded."""
        bare, file = self.row(index), self._rows[index].file
        if file is None:
            return bare
        return Sample(bare.id, bare.text, decode(file, self.modality, bare.id), bare.prompt, bare.labels)

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
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix.lower() == ".jsonl":
            return [_json_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows: list[dict[str, Label]] = []
        for row in reader:
            if None in row or None in row.values():
                raise EngineError(
                    f"{path} line {reader.line_num} has another number of fields than the "
                    f"{len(reader.fieldnames or ())} "
                    "column names; quote fields that contain the separator"
                )
            rows.append(dict(row))
        return rows


def label_columns(
    rows: Sequence[Mapping[str, Label]],
    used: frozenset[str],
    wanted: Sequence[str] | Mapping[str, Kind] | None,
    name: str,
) -> dict[str, list[Label]]:
    """The label columns of a table: `wanted`, or every column that is not `used` for something else.

    A column of text whose values all parse as numbers becomes one of numbers, unless `wanted` says
    "category"; an empty field is None.

    Raises:
        EngineError: a wanted column that the table lacks, or a "number" that is none.
    """
    present = list(dict.fromkeys(key for row in rows for key in row))
    names = [key for key in present if key not in used] if wanted is None else list(wanted)
    kinds: Mapping[str, Kind] = wanted if isinstance(wanted, Mapping) else {}
    columns: dict[str, list[Label]] = {}
    for label in names:
        if label not in present:
            near = difflib.get_close_matches(label, present, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise EngineError(
                f"data set {name} has no label column {label!r} (it has {', '.join(present)}){hint}"
            )
        columns[label] = _typed(
            [row.get(label) for row in rows], kinds.get(label), f"{name}, column {label!r}"
        )
    return columns


def _typed(values: list[Label], kind: Kind | None, where: str) -> list[Label]:
    values = [None if value == "" else value for value in values]
    if kind == "category":
        return [None if value is None else str(value) for value in values]
    texts = [value for value in values if isinstance(value, str)]
    try:
        for convert in (int, float):
            try:
                numbers = {text: convert(text) for text in texts}
                break
            except ValueError:
                if convert is float:
                    raise
    except ValueError as error:
        if kind == "number":
            raise EngineError(f"data set {where}: {error}; make it a category or correct the row") from error
        return [None if value is None else str(value) for value in values]
    return [numbers[value] if isinstance(value, str) else value for value in values]


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
