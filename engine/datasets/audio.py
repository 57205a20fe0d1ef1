"""Audio files to mono float32 waveforms, by libsndfile (`soundfile`) and the SoX resampler (`soxr`)."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from modegap.engine.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Waveform = tuple["NDArray[np.float32]", int]
Source = Path | bytes

# Writers that stream to a pipe cannot know the length and leave one of these.
_UNKNOWN_SIZES = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000})


def read_audio(source: Source) -> Waveform:
    """`(waveform float32 [samples], Hz)`; channels are averaged, integers scaled to [-1, 1].

    Args:
        source: a file, or its bytes: WAV, FLAC, OGG, MP3 and whatever else libsndfile reads.

    Raises:
        EngineError: `soundfile` is not installed.
        ValueError: no samples, fewer than the header promises, or values that are not finite.
        Exception: libsndfile cannot read it.
    """
    soundfile = _import("soundfile", "read audio files")
    with _opened(source) as stream:
        promised = _wav_shortfall(stream)
        with soundfile.SoundFile(stream) as file:
            own, frames = int(file.samplerate), int(file.frames)
            values = file.read(dtype="float32", always_2d=True)
    if promised is not None:
        raise ValueError(f"truncated: {promised[1]:,} of {promised[0]:,} bytes of sound")
    if len(values) == 0:
        raise ValueError("it holds no samples")
    if len(values) < frames:
        raise ValueError(f"truncated: {len(values):,} of {frames:,} samples")
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return np.ascontiguousarray(values.mean(axis=1), dtype=np.float32), own


def resample(wave: NDArray[np.float32], own: int, rate: int) -> NDArray[np.float32]:
    """The waveform at `rate` Hz, float32 [round(samples * rate / own)]: soxr's HQ, linear phase.

    Raises:
        EngineError: `soxr` is not installed.
    """
    if own == rate:
        return wave
    soxr = _import("soxr", f"resample {own} Hz to {rate} Hz")
    return np.asarray(soxr.resample(wave, own, rate, quality="HQ"), dtype=np.float32)


def seconds(source: Source) -> float:
    """Duration by the header, without decoding.

    Raises:
        Exception: libsndfile cannot read it.
    """
    soundfile = _import("soundfile", "read audio files")
    with _opened(source) as stream, soundfile.SoundFile(stream) as file:
        return float(file.frames / file.samplerate)


def _opened(source: Source) -> IO[bytes]:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _wav_shortfall(stream: IO[bytes]) -> tuple[int, int] | None:
    """(bytes of sound promised, bytes there) of a WAV file cut short, else None; rewinds.

    libsndfile reads such a file without a word: it trusts the file's size rather than the header.
    """
    try:
        if stream.read(4) != b"RIFF" or stream.read(8)[4:] != b"WAVE":
            return None
        while len(header := stream.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                start = stream.tell()
                there = stream.seek(0, 2) - start
                return (size, there) if size > there and size not in _UNKNOWN_SIZES else None
            stream.seek(size + size % 2, 1)
        return None
    finally:
        stream.seek(0)


def _import(name: str, purpose: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: the system lacks libsndfile
        raise EngineError(f"to {purpose}, pip install {name} ({error})") from error
