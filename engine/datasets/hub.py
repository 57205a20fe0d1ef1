"""Data sets of the Hugging Face `datasets` library: Hub ids and local folders; media are decoded by modegap."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError

from .base import Label, Modality
from .labels import Wanted, choose
from .media import Source
from .table import Row, TableDataset

TEXT_COLUMNS = (
    "text",
    "transcript",
    "transcription",
    "sentence",
    "caption",
    "captions",
    "answer",
    "question",
)
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


class HubDataset(TableDataset):
    """Rows of a `datasets.Dataset` whose media column keeps its encoded bytes."""

    def __init__(
        self,
        name: str,
        modality: Modality,
        rows: Sequence[Row],
        columns: Mapping[str, Sequence[Label]],
        table: Any,
        media: str,
    ) -> None:
        """`table` has the column `media` with decoding switched off."""
        super().__init__(name, modality, rows, columns)
        self._table, self._media = table, media

    def source(self, index: int) -> tuple[Source, str] | None:
        """The sample's encoded bytes, or its file."""
        cell = self._table[index][self._media] or {}
        path, data = cell.get("path"), cell.get("bytes")
        if data is not None:
            return bytes(data), f"{path or self._media} in row {index}"
        return (Path(path), str(path)) if path else (b"", f"{self._media} in row {index}")


def open_hub(
    spec: str,
    *,
    root: Path | None = None,
    split: str | None = None,
    media: str | None = None,
    text: str | None = None,
    id: str | None = None,
    prompt: str | None = None,
    labels: Wanted | None = None,
    name: str | None = None,
) -> TableDataset:
    """A data set by `org/name[:config[:split]]`, or a folder that `save_to_disk` wrote or that holds data files.

    Args:
        spec: what follows `hf:`.
        root: `datasets`' cache folder.
        split: instead of the one in `spec`; needed where there are several.
        media: the column of images or audio; the only one unless given. None there: a text data set.
        text: the column of texts (a list's first one); the first of text, transcript, transcription, sentence,
            caption, captions, answer, question unless given.
        id: the column of ids; row numbers unless given.
        prompt: the column of prompts.
        labels: label columns to keep; every other column of strings, numbers or classes unless given.
        name: what provenance calls it.

    Raises:
        EngineError: `datasets` is not installed, the id, split or column does not exist, or there is no network.
    """
    repository, config, own = _parts(spec)
    table = _load(repository, config, split or own, root)
    title = name or ":".join(part for part in (repository, config, split or own) if part)
    features = table.features
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    column = _media_column(kinds, media, title)
    chosen = _text_column(kinds, text, title)
    for option, given in (("id", id), ("prompt", prompt)):
        if given is not None and given not in kinds:
            raise EngineError(
                f"data set {title} has no column {given!r} for {option}= (it has {_list(kinds)})"
            )
    used = {column, chosen, id, prompt}
    scalar = [key for key in kinds if key != column and _is_label(features[key])]
    table = table.with_format(None)
    values = table.select_columns([key for key in kinds if key in {*scalar, *used} - {column}])[:]
    ids = values[id] if id else [f"{index:0{len(str(len(table)))}d}" for index in range(len(table))]
    rows = [
        Row(
            str(key),
            _text(values[chosen][index]) if chosen else "",
            prompt=_text(values[prompt][index]) or None if prompt else None,
        )
        for index, key in enumerate(ids)
    ]
    available = {
        key: [_label(value, features[key]) for value in values[key]]
        for key in scalar
        if key not in used or key in (labels or ())
    }
    columns = choose(available, labels, title, infer=False)
    if column is None:
        return TableDataset(title, "text", rows, columns)
    datasets = _library()
    kind: Modality = "audio" if kinds[column] == "Audio" else "image"
    encoded = datasets.Audio if kind == "audio" else datasets.Image
    undecoded = table.select_columns([column]).cast_column(column, encoded(decode=False))
    return HubDataset(title, kind, rows, columns, undecoded, column)


def _parts(spec: str) -> tuple[str, str | None, str | None]:
    if spec and Path(spec).expanduser().is_dir():  # a path may hold colons
        return str(Path(spec).expanduser()), None, None
    repository, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    if not repository:
        raise EngineError("got hf: without a name; expected hf:org/name[:config[:split]] or hf:FOLDER")
    return repository, config or None, split or None


def _load(repository: str, config: str | None, split: str | None, root: Path | None) -> Any:
    datasets = _library()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    folder = Path(repository)
    saved = folder.is_dir() and any((folder / mark).is_file() for mark in _SAVED)
    try:
        if saved:
            found = datasets.load_from_disk(repository)
        else:
            splits = datasets.get_dataset_split_names(repository, config) if split is None else [split]
            if len(splits) != 1:
                raise EngineError(
                    f"data set {repository} has the splits {', '.join(splits)}; name one (split=)"
                )
            cache = None if root is None else str(root)
            return datasets.load_dataset(repository, config, split=splits[0], cache_dir=cache)
    except EngineError:
        raise
    except Exception as error:  # ConnectionError, DatasetNotFoundError, ValueError (config, split), ...
        said = str(
            error.__cause__ or error
        )  # "An error occurred while generating the dataset" from the true one
        reason = (said.splitlines() or [type(error).__name__])[0].rstrip(".")
        raise EngineError(
            f"cannot open data set {repository} ({reason}); check id, config and split, log in for a gated one "
            "(hf auth login), and go online once (HF_HUB_OFFLINE=0) for one that is not in the cache"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        wanted = split or (names[0] if len(names) == 1 else None)
        if wanted not in names:
            raise EngineError(f"data set {repository} has the splits {', '.join(names)}; name one (split=)")
        return found[wanted]
    return found


def _library() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise EngineError(
            f"Hugging Face data sets need the datasets package: pip install datasets ({error})"
        ) from error


def _media_column(kinds: Mapping[str, str], media: str | None, title: str) -> str | None:
    found = [key for key, kind in kinds.items() if kind in ("Image", "Audio")]
    if media is not None and media not in found:
        raise EngineError(
            f"data set {title} has no column {media!r} of images or audio for media= (those are: {_list(found)}; "
            f"all columns: {_list(kinds)})"
        )
    if media is None and len(found) > 1:
        raise EngineError(
            f"data set {title} has several columns of media ({_list(found)}); name one with media="
        )
    return media or (found[0] if found else None)


def _text_column(kinds: Mapping[str, str], text: str | None, title: str) -> str | None:
    if text is not None and text not in kinds:
        raise EngineError(f"data set {title} has no column {text!r} for text= (it has {_list(kinds)})")
    found = text or next((key for key in TEXT_COLUMNS if key in kinds), None)
    if found is None and not {"Image", "Audio"} & set(kinds.values()):
        raise EngineError(
            f"data set {title} has neither media nor texts known by name (it has {_list(kinds)}); "
            "name the column of texts with text="
        )
    return found


def _is_label(feature: Any) -> bool:
    if type(feature).__name__ == "ClassLabel":
        return True
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and dtype.startswith(
        ("int", "uint", "float", "bool", "string", "large_string")
    )


def _label(value: Any, feature: Any) -> Label:
    if type(feature).__name__ == "ClassLabel":
        return None if value is None or value < 0 else str(feature.int2str(value))
    return None if value == "" else int(value) if isinstance(value, bool) else value


def _text(value: Any) -> str:
    """A cell as one text; the first of a list, as of several captions."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return "" if value is None else str(value)


def _list(names: Any) -> str:
    return ", ".join(names) or "none"
