"""Decoding of every format, and what is said about media that cannot be."""

from __future__ import annotations

import importlib
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modegap.engine.datasets import ListDataset, MediaError, Sample, dataset, media_sizes
from modegap.engine.datasets.audio import read_audio, resample
from modegap.engine.errors import EngineError

Write = Callable[..., Path]


@pytest.mark.parametrize(("suffix", "within"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
def test_every_audio_format(suffix: str, within: float, sound: Write, tmp_path: Path) -> None:
    path = sound(tmp_path / f"a.{suffix}", seconds=0.5, rate=16000)
    data = dataset(tmp_path)
    values, rate = data[0].media
    true = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert (rate, values.dtype, values.ndim) == (16000, np.float32, 1)
    inner = slice(2000, 6000)  # lossy codecs ring at the ends
    assert np.abs(values[inner] - true[inner]).max() < within
    np.testing.assert_allclose(media_sizes(data), [0.5], rtol=0.1)
    np.testing.assert_array_equal(read_audio(path.read_bytes())[0], values)


@pytest.mark.parametrize(("own", "rate"), [(44100, 16000), (8000, 16000), (16000, 16000)])
def test_resampling(own: int, rate: int) -> None:
    seconds = np.arange(own) / own
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    found = resample(tone, own, rate)
    assert (len(found), found.dtype) == (rate, np.float32)
    true = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    assert np.abs(found - true)[rate // 10 : -rate // 10].max() < 1e-4
    # what the new rate cannot hold is gone, not folded down
    high = np.sin(2 * np.pi * 15000 * seconds).astype(np.float32)
    if rate < own:
        assert np.abs(resample(high, own, rate))[rate // 10 : -rate // 10].max() < 1e-4


def test_images_are_upright_rgb(tmp_path: Path) -> None:
    wide = Image.new("RGB", (6, 4), (0, 0, 255))
    wide.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    wide.save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.full((4, 6), 40000, dtype=np.uint16)).save(tmp_path / "b.png")
    Image.new("RGBA", (6, 4), (9, 8, 7, 0)).save(tmp_path / "c.png")
    Image.new("P", (6, 4), 3).save(tmp_path / "d.gif")
    turned, grey, clear, palette = (sample.media for sample in dataset(tmp_path))
    assert [image.mode for image in (turned, grey, clear, palette)] == ["RGB"] * 4
    assert (turned.size, turned.getpixel((3, 0))) == ((4, 6), (255, 0, 0))
    assert grey.getpixel((0, 0)) == (40000 >> 8,) * 3
    assert clear.getpixel((0, 0)) == (9, 8, 7)
    assert media_sizes(dataset(tmp_path)).tolist() == [24.0] * 4


def cut(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


@pytest.mark.parametrize("suffix", ["wav", "flac", "png", "jpg"])
def test_media_cut_short_are_told(suffix: str, sound: Write, picture: Write, tmp_path: Path) -> None:
    if suffix in ("wav", "flac"):
        path = sound(tmp_path / f"a.{suffix}", seconds=1.0)
    else:
        path = tmp_path / f"a.{suffix}"
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    data = dataset(tmp_path)
    assert data[0].media is not None
    cut(path, 0.6)
    with pytest.raises(MediaError, match=rf"a\.{suffix} of sample 'a\.{suffix}' \(.+\)") as caught:
        data[0]
    assert caught.value.sample == f"a.{suffix}"
    assert "\n" not in str(caught.value)


def write_wav(path: Path, values: np.ndarray, promised: int | None = None) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(values.astype("<i2").tobytes())
    if promised is not None:
        raw = bytearray(path.read_bytes())
        raw[40:44] = struct.pack("<I", promised)
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git LFS pointer; run git lfs pull",
        ),
        (b"<html>not found</html>", "."),
        (None, "the file does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.png", "a.mp3"])
def test_bad_files_say_why(content: bytes | None, reason: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"there at first")
    data = dataset(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=reason) as caught:
        data[0]
    assert (caught.value.sample, caught.value.file) == (name, str(tmp_path / name))
    assert np.isnan(media_sizes(data)).all()


def test_sounds_without_sound(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(0))
    write_wav(tmp_path / "b.wav", np.ones(100), promised=0xFFFFFFFF)  # as written to a pipe
    write_wav(tmp_path / "c.wav", np.ones(100), promised=400)
    import soundfile

    soundfile.write(tmp_path / "d.wav", np.array([0.1, np.nan], dtype=np.float32), 16000, subtype="FLOAT")
    data = dataset(tmp_path)
    with pytest.raises(MediaError, match="it holds no samples"):
        data[0]
    assert len(data[1].media[0]) == 100
    with pytest.raises(MediaError, match="truncated: 200 of 400 bytes of sound"):
        data[2]
    with pytest.raises(MediaError, match="not finite"):
        data[3]


def test_missing_libraries_are_named(sound: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound(tmp_path / "a.flac", rate=8000)
    values, rate = dataset(tmp_path)[0].media
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> object:
        if name in ("soundfile", "soxr"):
            raise ImportError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(EngineError, match="to read audio files, pip install soundfile") as caught:
        dataset(tmp_path)[0]
    assert not isinstance(caught.value, MediaError)  # a missing library is no reason to skip samples
    with pytest.raises(EngineError, match="to resample 8000 Hz to 16000 Hz, pip install soxr"):
        resample(values, rate, 16000)


def test_sizes_of_samples_in_memory() -> None:
    samples = [
        Sample("a", "", (np.zeros(8000, np.float32), 16000)),
        Sample("b", "", (np.zeros(100, np.float32), 100)),
    ]
    assert media_sizes(ListDataset(samples)).tolist() == [0.5, 1.0]
    assert media_sizes(ListDataset(samples), [1]).tolist() == [1.0]
    assert media_sizes(ListDataset([Sample("t", "text")])).tolist() == [0.0]
    assert media_sizes(ListDataset([Sample("i", "", Image.new("RGB", (3, 5)))])).tolist() == [15.0]
