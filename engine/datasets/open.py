"""`dataset(...)`: what a name, path or list stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError

from .base import Dataset, Sample
from .folder import open_path
from .memory import ListDataset
from .published import LOADERS, find_loader
from .sifting import sift
from .views import limited


def dataset(
    spec: str | Path | Sequence[Sample],
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    **options: Any,
) -> Dataset:
    """A data set.

    Args:
        spec: one of
            `librispeech`, `cremad`, `esc50`, `voxceleb1`, `coco`, `gqa`, also with a split (`coco:val2017`):
            a published data set, from its folder layout under `root`;
            `hf:org/name[:config[:split]]` or `hf:FOLDER`: a Hugging Face data set;
            `store:PATH`: the texts of an activation store;
            a CSV, TSV or JSONL file, a row a sample;
            a folder with one such table (`metadata.csv`, `manifest.jsonl`, ... or the only one in it);
            a folder of images or audio files without a table: the id is the path, the text is that of a `.txt`
            file beside the media file (empty without one), the label `folder` is the folder it lies in;
            a text file, a line a sample;
            a list of `Sample`s.
        root: the folder a published data set lies in; for a table, the folder that file names are relative to.
        limit: only the first so many samples.
        skip_bad: leave out samples whose media are missing or cannot be decoded, and texts that are empty.
            Everything is decoded once for it; `sift` also says which they were.
        workers: processes for that decoding.
        options: `split`, `labels` (columns to keep, optionally each with its kind, "category" or "number"),
            `text`, `media`, `id`, `prompt` (columns), `name` (what provenance calls it), as the kind of data
            set takes them: see `librispeech` and the others, `open_hub`, `open_stored`, `open_path`.

    Raises:
        EngineError: nothing found, an option this kind of data set does not take, a missing file or column,
            duplicated ids; names sample and remedy.
    """
    found = unsifted(spec, root=root, limit=limit, keep_missing=skip_bad, **options)
    return sift(found, workers=workers)[0] if skip_bad else found


def unsifted(
    spec: str | Path | Sequence[Sample],
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    keep_missing: bool = False,
    **options: Any,
) -> Dataset:
    """`dataset`, with bad samples still in it; `keep_missing` lets those stay whose file does not exist.

    Raises:
        EngineError: see `dataset`.
    """
    if not isinstance(spec, str | Path):
        return limited(ListDataset(spec, options.pop("name", None) or "list"), limit)
    options = {key: value for key, value in options.items() if value is not None}
    if root is not None:
        options["root"] = Path(root).expanduser()
    opener, what, first = _opener(spec, options)
    accepted = [
        key for key in inspect.signature(opener).parameters if key not in ("keep_missing", "path", "spec")
    ]
    wrong = [key for key in options if key not in accepted]
    if wrong:
        raise EngineError(f"{what} takes no option {wrong[0]!r}; it takes {', '.join(accepted)}")
    if "keep_missing" in inspect.signature(opener).parameters:
        options["keep_missing"] = keep_missing
    found: Dataset = opener(*first, **options)
    return limited(found, limit)


def _opener(spec: str | Path, options: dict[str, Any]) -> tuple[Callable[..., Any], str, list[Any]]:
    """The function that opens `spec`, what errors call it, and its positional arguments."""
    kind, colon, rest = str(spec).partition(":")
    name = find_loader(kind) if isinstance(spec, str) else None
    if name is not None:
        loader = LOADERS[name]
        if rest:
            options.setdefault("split", rest)
        if "root" not in options:
            beside = f"; for the folder {spec} itself, write ./{spec}" if Path(spec).exists() else ""
            raise EngineError(f"data set {name} needs root=, the folder that holds {loader.layout}{beside}")
        return loader.open(), f"data set {name}", []
    if isinstance(spec, str) and colon and kind == "hf":
        from .hub import open_hub

        return open_hub, "a Hugging Face data set", [rest]
    if isinstance(spec, str) and colon and kind == "store":
        from .stored import open_stored

        return open_stored, "the texts of a store", [Path(rest).expanduser()]
    return open_path, "a folder, table or text file", [Path(spec).expanduser()]
