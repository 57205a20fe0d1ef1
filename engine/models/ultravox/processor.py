"""Sound and prompts as Ultravox was trained on them, for whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .model import tokens

AUDIO = "<|audio|>"


class UltravoxProcessor:
    """Text and waveforms to the model's tensors.

    Args:
        feature_extractor: Whisper's, with the encoder's number of mel bins.
        tokenizer: the language model's, knowing `<|audio|>`.
        stack: encoder frames a token.
        context: mel frames that the encoder takes at once; longer sound is cut into such chunks.
    """

    audio_token = AUDIO
    any_length = True

    def __init__(self, feature_extractor: Any, tokenizer: Any, stack: int, context: int) -> None:
        """Everything is given."""
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer
        self.stack = stack
        self.context = context

    @property
    def chat_template(self) -> Any:
        """The tokenizer's own."""
        return self.tokenizer.chat_template

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        """The prompt of a conversation; sound comes after the text of its message."""
        plain = []
        for message in messages:
            text = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
            media = "".join(AUDIO for part in message["content"] if part["type"] == "audio")
            plain.append({"role": message["role"], "content": f"{text} {media}".strip()})
        return str(self.tokenizer.apply_chat_template(plain, **options))

    def expanded_ids(self, text: str, count: int) -> list[int]:
        """Token ids of a prompt whose sound has `count` rows.

        Raises:
            ValueError: a text that does not name exactly one sound.
        """
        parts = text.split(AUDIO)
        if len(parts) != 2:
            raise ValueError(f"a prompt has {len(parts) - 1} placeholders {AUDIO}; expected one")
        token = int(self.tokenizer.convert_tokens_to_ids(AUDIO))
        before, after = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
        return [*before, *[token] * count, *after]

    def __call__(
        self, text: Sequence[str], audio: Sequence[NDArray[np.float32]], sampling_rate: int, **_: Any
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` [B, T] padded on the left, `input_features`, `feature_attention_mask`.

        Every sound is prepared by itself: its features do not depend on its batch.

        Raises:
            ValueError: a text that does not name exactly one sound.
        """
        features = [self._features(wave, sampling_rate) for wave in audio]
        rows = [
            self.expanded_ids(one, self._count(feature.shape[1]))
            for one, feature in zip(text, features, strict=True)
        ]
        longest = max(feature.shape[1] for feature in features)
        unit = 2 if longest <= self.context else self.context  # a frame of the encoder is two of the features
        longest += -longest % unit
        padded = [torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in features]
        mask = torch.tensor([[i < one.shape[1] for i in range(longest)] for one in features])
        width = max(len(row) for row in rows)
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad = next(int(value) for value in pads if value is not None)
        return {
            "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
            "input_features": torch.stack(padded),
            "feature_attention_mask": mask.long(),
        }

    def _features(self, wave: NDArray[np.float32], rate: int) -> torch.Tensor:
        hop = int(self.feature_extractor.hop_length)
        if len(wave) < 2 * hop:  # the shortest sound that a spectrogram can be made of
            wave = np.pad(wave, (0, 2 * hop - len(wave)))
        made = self.feature_extractor(
            wave,
            sampling_rate=rate,
            padding="longest",
            pad_to_multiple_of=hop,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        found: torch.Tensor = made["input_features"][0][:, : int(made["attention_mask"][0].sum())]
        return found

    def _count(self, frames: int) -> int:
        whole, rest = divmod(frames, self.context)
        chunks = torch.tensor([self.context] * whole + [rest])
        return int(tokens(chunks, self.stack).sum())
