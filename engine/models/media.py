"""Media of a batch in the form a processor takes them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modegap.engine.datasets.audio import resample
from modegap.engine.datasets.base import Modality, Sample
from modegap.engine.errors import EngineError


def media_arguments(processor: Any, samples: Sequence[Sample], modality: Modality) -> dict[str, Any]:
    """Keyword arguments of the processor's call: RGB images, or waveforms at its own sampling rate.

    Raises:
        EngineError: media of another kind than the model takes; names the sample.
    """
    if modality == "image":
        return {"images": [_image(sample) for sample in samples]}
    extractor = processor.feature_extractor
    rate = int(extractor.sampling_rate)
    waves = [_wave(sample, rate) for sample in samples]
    cut = not getattr(processor, "any_length", False)
    longest = getattr(extractor, "n_samples", None) if cut else None
    for sample, wave in zip(samples, waves, strict=True):
        if longest is not None and len(wave) > longest:
            warnings.warn(
                f"sample {sample.id!r} lasts {len(wave) / rate:.1f} s; the model hears the first "
                f"{longest / rate:.1f} s",
                stacklevel=2,
            )
    # transformers renamed the argument from `audios` to `audio`
    known = inspect.signature(type(processor).__call__).parameters
    name = "audios" if "audios" in known and "audio" not in known else "audio"
    return {name: waves, "sampling_rate": rate}


def _image(sample: Sample) -> Any:
    if not hasattr(sample.media, "convert"):
        raise EngineError(
            f"sample {sample.id!r} has {_kind(sample)}, the model takes images; give a PIL image or another "
            "model"
        )
    return sample.media.convert("RGB")


def _wave(sample: Sample, rate: int) -> NDArray[np.float32]:
    if not isinstance(sample.media, tuple) or len(sample.media) != 2:
        raise EngineError(
            f"sample {sample.id!r} has {_kind(sample)}, the model takes audio; give (waveform, Hz) or "
            "another model"
        )
    wave = np.asarray(sample.media[0], dtype=np.float32)
    own = int(sample.media[1])
    if wave.ndim != 1 or wave.size == 0 or own < 1:
        raise EngineError(
            f"sample {sample.id!r}: got a waveform of shape {list(wave.shape)} at {own} Hz; expected mono "
            "[samples]"
        )
    return resample(wave, own, rate)


def _kind(sample: Sample) -> str:
    return "no media" if sample.media is None else f"media of type {type(sample.media).__name__}"
