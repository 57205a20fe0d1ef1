"""Samples to padded tensors, with what stands at every position."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from modegap.engine.datasets.base import Modality, Sample
from modegap.engine.errors import EngineError

from .media import media_arguments
from .prompts import modality_of_processor, style_of

PADDING, TEXT, IMAGE, AUDIO = 0, 1, 2, 3
MEDIA_ID = {"text": TEXT, "image": IMAGE, "audio": AUDIO}

_turns: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def turn(tokenizer: Any) -> threading.RLock:
    """The lock under which a tokenizer is called.

    Padding is a setting of the tokenizer, written before each call that differs from the last: two threads at
    once get each other's, or the error "Already borrowed".
    """
    with _turns_lock:
        return _turns.setdefault(tokenizer, threading.RLock())


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """A batch of B samples padded to T positions.

    Attributes:
        tensors: keyword arguments of the model's forward.
        attention: bool [B, T], true where a real token stands.
        modality: uint8 [B, T]: 0 padding, 1 text, 2 image, 3 audio.
        target_mask: bool [B, T], true on the tokens to score.
        ids: sample ids.
        texts: token ids of each sample's own text, without special tokens.
        samples: the samples without their media.
    """

    tensors: dict[str, torch.Tensor]
    attention: torch.Tensor
    modality: torch.Tensor
    target_mask: torch.Tensor
    ids: list[str]
    texts: list[list[int]]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.ids)

    @property
    def media_counts(self) -> list[int]:
        """Placeholder tokens (image or audio positions) of each sample."""
        return [int(count) for count in (self.modality > TEXT).sum(dim=1)]

    @property
    def frames(self) -> tuple[list[int], int] | None:
        """Valid frames (or image tiles) of each sample and frames in all, where media are padded; else None."""
        for name, mask in self.tensors.items():
            of_media = name.endswith("mask") and mask.shape != self.attention.shape
            if of_media and mask.dim() == 2 and mask.shape[0] == len(self):
                return [int(count) for count in mask.sum(dim=1)], int(mask.shape[1])
        pixels = self.tensors.get("pixel_values")
        if pixels is not None and pixels.dim() >= 5 and pixels.shape[0] == len(self):
            # [B, tiles, C, H, W] or [B, images, tiles, C, H, W]; processors pad with tiles of zeros
            tiles = pixels.flatten(1, -4).flatten(2) != 0
            return [int(count) for count in tiles.any(dim=2).sum(dim=1)], int(tiles.shape[1])
        return None

    @property
    def spans(self) -> list[list[tuple[int, int]]]:
        """Runs of media tokens of each sample, `(first, past the last)` among its own, unpadded, tokens.

        For pooling over the modality only: the rows of an `llm` point at these positions.
        """
        found = []
        for kinds, real in zip(self.modality, self.attention, strict=True):
            media = torch.nn.functional.pad((kinds[real] > TEXT).long(), (1, 1)).diff()
            starts, stops = (media == 1).nonzero().flatten(), (media == -1).nonzero().flatten()
            found.append(list(zip(starts.tolist(), stops.tolist(), strict=True)))
        return found


class Collator:
    """Prompts, tokenises and pads for one processor.

    Args:
        processor: a transformers processor or tokenizer.
        media_token: id of the placeholder token; the processor's own unless given.
        max_positions: longest sequence the model takes; unchecked unless given.

    Raises:
        EngineError: neither a tokenizer nor a processor with one.
    """

    def __init__(
        self, processor: Any, *, media_token: int | None = None, max_positions: int | None = None
    ) -> None:
        """Looks up tokenizer, placeholder and padding of the processor."""
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(self.tokenizer, "convert_tokens_to_ids"):
            raise EngineError(
                f"got a {type(processor).__name__} as processor; give the model's AutoProcessor or "
                "AutoTokenizer"
            )
        self.modality: Modality = modality_of_processor(processor)
        self.style = None if self.modality == "text" else style_of(processor, self.modality)
        if media_token is None and self.style is not None:
            token = getattr(processor, f"{self.modality}_token")
            media_token = int(self.tokenizer.convert_tokens_to_ids(str(token)))
        self.media_token = media_token
        self.max_positions = max_positions
        self._nested = False
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        self.pad_id = int(next(token for token in pads if token is not None))
        self.side: str = getattr(self.tokenizer, "padding_side", "right")
        with turn(self.tokenizer):
            probe = self.tokenizer("a", return_special_tokens_mask=True)
        marks = list(probe["special_tokens_mask"])
        leading = next((i for i, mark in enumerate(marks) if not mark), 0)
        self._prefix: list[int] = list(probe["input_ids"][:leading])
        # sentencepiece puts a space before every text by itself, byte-level BPE does not
        joined = self.tokenizer.decode([*self._plain("a"), *self._plain("b")])
        self._space = "" if joined.strip() == "a b" else " "

    def collate(
        self, samples: Sequence[Sample], *, target: bool = False, prompt: str | None = None
    ) -> Inputs:
        """A padded batch.

        A media sample is its prompt with the media's placeholders, then its text if `target`. A sample
        without media (and every sample, for a text model) is its prompt, if it has one, and its text: the
        text baseline; the text is then what `target` scores, a first token that nothing precedes left out.

        Args:
            samples: at least one.
            target: append and mark the tokens of `Sample.text`.
            prompt: the question for samples that bring none; the family's own unless given.

        Raises:
            ValueError: no samples.
            EngineError: media the model cannot take, no text to score, or too many positions; names the
                sample.
        """
        if not samples:
            raise ValueError("got no samples; expected at least one")
        bare = tuple(replace(sample, media=None) for sample in samples)
        texts = [self._plain(sample.text) if sample.text else [] for sample in samples]
        with_media = [sample for sample in samples if sample.media is not None]
        if self.modality == "text" or not with_media:
            rows, starts = self._text_rows(samples, texts, prompt)
            extra: dict[str, torch.Tensor] = {}
            aligned: dict[str, list[torch.Tensor]] = {}
        else:
            if len(with_media) < len(samples):
                lacking = next(sample.id for sample in samples if sample.media is None)
                raise EngineError(f"sample {lacking!r} has no media, others of its batch have; separate them")
            rows, extra, aligned = self._media_rows(samples, prompt)
            starts = [len(row) for row in rows]
            if target:
                rows = [row + self._answer(sample) for row, sample in zip(rows, samples, strict=True)]
        self._check(samples, rows, starts, target)
        return self._pad(rows, starts if target else None, bare, texts, extra, aligned)

    def wrap(self, tensors: dict[str, torch.Tensor], ids: Sequence[str]) -> Inputs:
        """`Inputs` for tensors that the caller's own call of the processor made (`input_ids`,
        `attention_mask`, ...).

        The text of each sample is then its text tokens, special ones left out.

        Raises:
            EngineError: no `input_ids`, or another number of ids than rows.
        """
        if "input_ids" not in tensors:
            raise EngineError(
                f"got inputs {sorted(tensors)} without input_ids; give the processor's whole output"
            )
        tokens = tensors["input_ids"]
        if tokens.dim() != 2 or len(ids) != tokens.shape[0]:
            raise EngineError(
                f"got {len(ids)} ids for input_ids of shape {list(tokens.shape)}; give one a row"
            )
        attention = tensors.get("attention_mask", torch.ones_like(tokens)).bool()
        modality = self._modalities(tokens, attention)
        special = torch.tensor(sorted(set(self.tokenizer.all_special_ids)), device=tokens.device)
        real = (modality == TEXT) & ~torch.isin(tokens, special)
        texts = [tokens[row][real[row]].tolist() for row in range(len(ids))]
        samples = tuple(
            Sample(sample_id, self.tokenizer.decode(text)) for sample_id, text in zip(ids, texts, strict=True)
        )
        return Inputs(
            dict(tensors), attention, modality, torch.zeros_like(attention), list(ids), texts, samples
        )

    def question(self, prompt: str | None) -> str:
        """What the model is asked for a sample that brings no prompt, as text (empty for a raw text)."""
        if self.style is None:
            return prompt or ""
        return self.style.render(self.processor, prompt)

    def text_length(self, sample: Sample) -> int:
        """Tokens of a sample's own text, special ones left out."""
        return len(self._plain(sample.text)) if sample.text else 0

    def answer_length(self, sample: Sample) -> int:
        """Tokens that `target` appends to the prompt of a media sample."""
        return len(self._answer(sample))

    def answer(self, sample: Sample) -> list[int]:
        """Token ids that `target` appends to the prompt of a media sample."""
        return self._answer(sample)

    def before_text(self, prompt: str | None) -> list[int]:
        """Token ids in front of a text sample's own: special tokens, then the prompt."""
        return self._prefix + (self._plain(prompt) if prompt else [])

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text, with the special tokens around it or without any."""
        with turn(self.tokenizer):
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        return self.encode(text, special=False)

    def _answer(self, sample: Sample) -> list[int]:
        chat = self.style is not None and self.style.wrap == "chat"
        return self._plain(sample.text if chat else self._space + sample.text) if sample.text else []

    def _text_rows(
        self, samples: Sequence[Sample], texts: list[list[int]], prompt: str | None
    ) -> tuple[list[list[int]], list[int]]:
        rows, starts = [], []
        for sample, text in zip(samples, texts, strict=True):
            asked = sample.prompt if sample.prompt is not None else prompt
            before = self.before_text(asked)
            rows.append(before + (self._answer(sample) if asked else text))
            starts.append(max(len(before), 1))  # nothing predicts position 0
        return rows, starts

    def _media_rows(
        self, samples: Sequence[Sample], prompt: str | None
    ) -> tuple[list[list[int]], dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
        """Unpadded token ids, media tensors, and tensors that follow the tokens (say, token types)."""
        if self.style is None:
            raise EngineError(
                f"{type(self.processor).__name__} names no {self.modality} placeholder; call the processor "
                "yourself "
                "and pass its output to record()"
            )
        asked = [sample.prompt if sample.prompt is not None else prompt for sample in samples]
        prompts = [self.style.render(self.processor, question) for question in asked]
        media = media_arguments(self.processor, samples, self.modality)
        if self._prefix and all(prompt.startswith(str(self.tokenizer.bos_token)) for prompt in prompts):
            media["add_special_tokens"] = False  # chat templates write the first token themselves
        try:
            with turn(self.tokenizer):
                made = self._process(prompts, media)
        except (ValueError, TypeError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EngineError(
                f"the processor refused samples {samples[0].id!r} to {samples[-1].id!r}: {reason}; "
                "check their media and prompt"
            ) from error
        tokens = made.pop("input_ids")
        mask = made.pop("attention_mask", torch.ones_like(tokens)).bool()
        rows = [tokens[i][mask[i]].tolist() for i in range(len(samples))]
        follow = {
            name: [value[i][mask[i]] for i in range(len(samples))]
            for name, value in made.items()
            if isinstance(value, torch.Tensor)
            and value.shape == tokens.shape
            and not value.is_floating_point()
        }
        extra = {
            name: value
            for name, value in made.items()
            if isinstance(value, torch.Tensor) and name not in follow
        }
        return rows, extra, follow

    def _process(self, prompts: list[str], media: dict[str, Any]) -> dict[str, Any]:
        """The processor's output; some families want a list of images for each sample."""
        one_list = {"text": prompts, "return_tensors": "pt", **self._padding(), **media}
        nested = {**one_list, "images": [[image] for image in media.get("images", ())]}
        if self._nested:
            return dict(self.processor(**nested))
        try:
            return dict(self.processor(**one_list))
        except (ValueError, TypeError) as error:
            if self.modality != "image":
                raise
            try:
                found = dict(self.processor(**nested))
            except (ValueError, TypeError):
                raise error from None
            self._nested = True
            return found

    def _padding(self) -> dict[str, Any]:
        """Pads the text; a sound keeps the length that its encoder was made for."""
        known = inspect.signature(type(self.processor).__call__).parameters
        if self.modality == "image" or "padding" in known:
            return {"padding": True}
        return {"text_kwargs": {"padding": True}}

    def _check(
        self, samples: Sequence[Sample], rows: list[list[int]], starts: list[int], target: bool
    ) -> None:
        for sample, row, start in zip(samples, rows, starts, strict=True):
            if not row:
                raise EngineError(f"sample {sample.id!r} has no text; give it one or leave it out")
            if target and start >= len(row):
                raise EngineError(f"sample {sample.id!r} has no target tokens to score; give it a text")
            if self.max_positions is not None and len(row) > self.max_positions:
                raise EngineError(
                    f"sample {sample.id!r} has {len(row)} tokens, the model takes {self.max_positions}; "
                    "shorten its text"
                )

    def _pad(
        self,
        rows: list[list[int]],
        starts: list[int] | None,
        samples: tuple[Sample, ...],
        texts: list[list[int]],
        extra: dict[str, torch.Tensor],
        aligned: dict[str, list[torch.Tensor]],
    ) -> Inputs:
        width = max(len(row) for row in rows)
        tokens = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        attention = torch.zeros((len(rows), width), dtype=torch.bool)
        target = torch.zeros_like(attention)
        follow = {
            name: torch.zeros((len(rows), width), dtype=values[0].dtype) for name, values in aligned.items()
        }
        for i, row in enumerate(rows):
            first = width - len(row) if self.side == "left" else 0
            tokens[i, first : first + len(row)] = torch.tensor(row, dtype=torch.long)
            attention[i, first : first + len(row)] = True
            if starts is not None:
                target[i, first + starts[i] : first + len(row)] = True
            for name, values in aligned.items():
                follow[name][i, first : first + len(values[i])] = values[i]
        tensors = {"input_ids": tokens, "attention_mask": attention.long(), **follow, **extra}
        modality = self._modalities(tokens, attention)
        return Inputs(tensors, attention, modality, target, [sample.id for sample in samples], texts, samples)

    def _modalities(self, tokens: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        modality = attention.to(torch.uint8)
        if self.media_token is not None:
            modality[attention & (tokens == self.media_token)] = MEDIA_ID[self.modality]
        return modality
