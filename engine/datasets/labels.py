"""Label columns: chosen from a table's columns, typed, and made from texts."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from modegap.engine.errors import EngineError

from .base import Label

Kind = Literal["category", "number"]
Wanted = Sequence[str] | Mapping[str, Kind]

TOP_WORDS = 50
_WORD = re.compile(r"[^\W\d_]+")


def lexical(texts: Sequence[str | None], top: int = TOP_WORDS) -> tuple[list[str | None], tuple[str, ...]]:
    """The lexical label: each text's first word among the `top` most frequent ones, None where it has none.

    Words are runs of letters, lower-cased; among equally frequent ones the first to occur counts as more
    frequent (the published probes do the same over a-z).

    Returns:
        (label of each text, the words, the most frequent first).
    """
    words = [_WORD.findall((text or "").lower()) for text in texts]
    counts = Counter(word for sentence in words for word in sentence)
    frequent = tuple(word for word, _ in counts.most_common(top))
    known = frozenset(frequent)
    return [next((word for word in sentence if word in known), None) for sentence in words], frequent


def choose(
    columns: Mapping[str, Sequence[Label]], wanted: Wanted | None, name: str, *, infer: bool = True
) -> dict[str, list[Label]]:
    """The `wanted` columns; all of them unless given.

    With `infer`, as tables need it, a column of text whose values all parse as numbers becomes one of numbers
    (say "category" against it) and an empty field None.

    Raises:
        EngineError: a wanted column that is not there or has no value in any row, or a "number" that is none.
    """
    kinds: Mapping[str, Kind] = wanted if isinstance(wanted, Mapping) else {}
    chosen: dict[str, list[Label]] = {}
    for label in columns if wanted is None else wanted:
        if label not in columns:
            near = difflib.get_close_matches(label, columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise EngineError(
                f"data set {name} has no label column {label!r} (it has {', '.join(columns) or 'none'}){hint}"
            )
        values = list(columns[label])
        if wanted is not None and all(value in (None, "") for value in values):
            filled = [
                key for key, column in columns.items() if any(value not in (None, "") for value in column)
            ]
            raise EngineError(
                f"data set {name}: the label column {label!r} is empty in every row (columns with values: "
                f"{', '.join(filled) or 'none'}); choose another or fill it"
            )
        kind = kinds.get(label)
        chosen[label] = _typed(values, kind, f"{name}, column {label!r}") if infer or kind else values
    return chosen


def _typed(given: Sequence[Label], kind: Kind | None, where: str) -> list[Label]:
    """A column as categories (str) or numbers, "" as None; see `choose`.

    Raises:
        EngineError: a "number" that is none; names `where`.
    """
    values = [None if value == "" else value for value in given]
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
