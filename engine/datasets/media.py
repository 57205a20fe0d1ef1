"""Decoding: an image file to a PIL image, an audio file to a mono float32 waveform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modegap.engine.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .base import Modality

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})

Waveform = tuple["NDArray[np.float32]", int]


def modality_of(path: Path) -> Modality | None:
    """`image` or `audio` by the file's suffix, None for anything else."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "audio" if suffix in AUDIO_SUFFIXES else None


def decode(path: Path, modality: Modality, sample_id: str) -> Any:
    """The media of one sample: a PIL RGB image, or `(waveform float32 [samples] in [-1, 1], Hz)`.

    Raises:
        EngineError: the file cannot be decoded; names the sample.
    """
    try:
        return read_image(path) if modality == "image" else read_audio(path)
    except EngineError:
        raise
    except Exception as error:  # decoders raise whatever they like (SyntaxError, struct.error, ...)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"cannot decode {path} of sample {sample_id!r} ({reason}); replace the file or remove its row"
        ) from error


def read_image(path: Path) -> Any:
    """A PIL image in RGB, fully decoded and detached from its file."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def read_audio(path: Path) -> Waveform:
    """`(waveform float32 [samples], Hz)`; channels are averaged, integers scaled to [-1, 1].

    WAV needs nothing else; FLAC, OGG and MP3 need the `soundfile` package.

    Raises:
        EngineError: another format than WAV, and `soundfile` is not installed.
    """
    if path.suffix.lower() == ".wav":
        from scipy.io import wavfile

        rate, values = wavfile.read(path)
        return mono(_to_float(values)), int(rate)
    try:
        import soundfile  # type: ignore[import-not-found, unused-ignore]  # optional
    except ImportError as error:
        raise EngineError(
            f"{path} is not a WAV file; convert it to WAV, or pip install soundfile to read {path.suffix} "
            "files"
        ) from error
    values, rate = soundfile.read(path, dtype="float32")
    return mono(values), int(rate)


def mono(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[samples]` or `[samples, channels]` to `[samples]`, the mean over the channels."""
    flat = values if values.ndim == 1 else values.mean(axis=1)
    return np.ascontiguousarray(flat, dtype=np.float32)


def _to_float(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype == np.uint8:  # 8-bit WAV is unsigned, all wider ones are signed
        return (values.astype(np.float32) - 128.0) / 128.0
    return (values / float(2 ** (8 * values.dtype.itemsize - 1))).astype(np.float32)
