"""Which rows of which two stores an alignment compares, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from modegap.stores.errors import StoreError, unknown_name

from .config import AlignConfig

if TYPE_CHECKING:
    from modegap.engine.moments import MomentsStore
    from modegap.stores import ActivationStore

Kind = Literal["tokens", "pooled"]
Source: TypeAlias = "ActivationStore | MomentsStore"


@dataclass(frozen=True, slots=True)
class LawInputs:
    """The two laws, each from rows or from statistics of rows.

    Attributes:
        modal: store of the modal rows.
        text: store of the text rows.
        point: hook point of the modal rows.
        text_point: hook point of the text rows.
        kind: `tokens` or `pooled`, the same on both sides.
    """

    modal: Source
    text: Source
    point: str
    text_point: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Inputs(LawInputs):
    """The rows of the two laws."""

    modal: ActivationStore
    text: ActivationStore


def resolve(modal: ActivationStore, text: ActivationStore, config: AlignConfig) -> Inputs:
    """`resolve_laws` of two stores of rows."""
    found = resolve_laws(modal, text, config)
    return Inputs(modal, text, found.point, found.text_point, found.kind)


def resolve_laws(modal: Source, text: Source, config: AlignConfig) -> LawInputs:
    """The rows to compare under the configured law.

    Raises:
        StoreError: an unknown hook point, rows that a store does not hold, or fewer than two rows.
        ValueError: the two hook points differ in width.
    """
    _known(modal, config.point, "modal store")
    text_point = config.text_point or _text_point(text, config)
    _known(text, text_point, "text store")
    kind = _kind(modal, text, text_point, config)
    width, text_width = modal.points[config.point].width, text.points[text_point].width
    if width != text_width:
        raise ValueError(
            f"{config.point} of the modal store is {width} wide, {text_point} of the text store "
            f"{text_width}: two spaces; take a text baseline of the same decoder, or set text_point"
        )
    for name, store, point in (("modal", modal, config.point), ("text", text, text_point)):
        n = _count(store, point, kind)
        if n < 2:
            raise StoreError(
                f"the {name} store has {n} complete {kind} rows at {point}, a covariance needs two: resume "
                "its extraction (modegap extract with the same options)"
            )
    return LawInputs(modal, text, config.point, text_point, kind)


def _count(store: Source, point: str, kind: Kind) -> int:
    from modegap.engine.moments import MomentsStore

    if isinstance(store, MomentsStore):
        return store.count(point, kind)
    return store.rows(point, kind).n_valid_rows


def _text_point(text: Source, config: AlignConfig) -> str:
    if config.law == "paper":
        found = next((p for p in ("llm_hidden_16", "llm_final") if p in text.points), None)
        if found is None:
            raise StoreError(
                "the paper's law compares with llm_hidden_16 or llm_final of the text store, which has "
                f"{', '.join(text.points)}: extract one of them, or set text_point"
            )
        return found
    if config.point != "adapter_output":
        return config.point
    if "text_embedding" not in text.points:
        raise StoreError(
            "adapter_output is compared with the text's own input embeddings, but the text store has no "
            f"text_embedding, only {', '.join(text.points)}: extract it, or set text_point"
        )
    return "text_embedding"


def _kind(modal: Source, text: Source, text_point: str, config: AlignConfig) -> Kind:
    held = [_kinds(modal.points[config.point].rows), _kinds(text.points[text_point].rows)]
    wanted: tuple[Kind, ...]
    if config.law == "paper":
        wanted = ("pooled",)
    elif config.rows is not None:
        wanted = (config.rows,)
    else:
        wanted = ("tokens", "pooled")
    for kind in wanted:
        if all(kind in kinds for kinds in held):
            return kind
    raise StoreError(
        f"{' or '.join(wanted)} rows are needed on both sides, but {config.point} of the modal store has "
        f"{' and '.join(held[0])} rows and {text_point} of the text store {' and '.join(held[1])}: extract "
        "with rows=both, or choose rows that both have"
    )


def _kinds(rows: str) -> tuple[Kind, ...]:
    return ("tokens", "pooled") if rows == "both" else (cast(Kind, rows),)


def _known(store: Source, point: str, which: str) -> None:
    if point not in store.points:
        raise StoreError(f"{which}: {unknown_name('hook point', point, store.points)}")
