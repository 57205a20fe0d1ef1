"""Generated media and tables for the data set tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    """A quiet sine, float32."""
    return (0.25 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def sound() -> Callable[..., Path]:
    """`sound(path, seconds=0.1, rate=16000, hertz=440)` writes a tone in the format of the suffix."""

    def write(path: Path, seconds: float = 0.1, rate: int = 16000, hertz: float = 440.0) -> Path:
        import soundfile

        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(seconds, rate, hertz), rate)
        return path

    return write


@pytest.fixture
def picture() -> Callable[..., Path]:
    """`picture(path, width=8, height=6, value=100)` writes a plain red image."""

    def write(path: Path, width: int = 8, height: int = 6, value: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (value, 0, 0)).save(path)
        return path

    return write


@pytest.fixture
def lines() -> Callable[..., Path]:
    """`lines(path, *lines)` writes a text file."""

    def write(path: Path, *rows: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        return path

    return write
