"""Decoding of a sample's media, and their size without decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError

from .audio import read_audio, seconds
from .base import Modality
from .errors import MediaError
from .images import pixels, read_image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})
_POINTER = b"version https://git-lfs"

Source = Path | bytes


def modality_of(path: Path) -> Modality | None:
    """`image` or `audio` by the file's suffix, None for anything else."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "audio" if suffix in AUDIO_SUFFIXES else None


def decode(source: Source, modality: Modality, sample: str, *, name: str = "") -> Any:
    """The media of one sample: a PIL RGB image, or `(waveform float32 [samples] in [-1, 1], Hz)`.

    Args:
        source: the file or its bytes.
        modality: image or audio.
        sample: its id, for the error.
        name: what the error calls bytes.

    Raises:
        MediaError: it is missing, empty, cut short or no such media; names sample and file.
        EngineError: a library that reads it is not installed.
    """
    try:
        return read_image(source) if modality == "image" else read_audio(source)
    except EngineError:
        raise
    except Exception as error:  # decoders raise whatever they like (SyntaxError, struct.error, ...)
        where = name or (str(source) if isinstance(source, Path) else "its bytes")
        raise MediaError(sample, where, _reason(source, error)) from error


def size_of(source: Source, modality: Modality) -> float:
    """Seconds of audio or pixels of an image by the header; NaN where it cannot be read."""
    try:
        return seconds(source) if modality == "audio" else float(pixels(source))
    except EngineError:
        raise
    except Exception:  # decoding will say why
        return float("nan")


def _reason(source: Source, error: Exception) -> str:
    """Why, in a few words: the usual causes by their own names, else the decoder's first line."""
    if isinstance(source, Path):
        if not source.exists():
            return "the file does not exist"
        if source.is_dir():
            return "it is a folder"
        try:
            with source.open("rb") as file:
                start = file.read(len(_POINTER))
        except OSError as denied:
            return denied.strerror or "it cannot be read"
    else:
        start = source[: len(_POINTER)]
    if not start:
        return "the file is empty"
    if start == _POINTER:
        return "it is a Git LFS pointer; run git lfs pull"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is no image that Pillow reads"
    said = getattr(error, "error_string", None) or str(
        error
    )  # libsndfile's own words, without the file object
    return str(said).splitlines()[0].rstrip(".") if said else type(error).__name__
