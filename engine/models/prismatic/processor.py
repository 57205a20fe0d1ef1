"""Images and prompts as published Prismatic models were trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from .backbones import Backbone

Strategy = Literal["resize-naive", "resize-crop", "letterbox"]
IMAGE = "<image>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: {question} ASSISTANT:"
)
PURE = "In: {question}\nOut:"


class PrismaticImages:
    """PIL images to normalised pixels [B, towers * 3, size, size], fp32.

    Args:
        backbones: one a tower; all of one size.
        strategy: how an image becomes square: stretched, its middle cut out, or set on a border of the mean
            colour.
    """

    def __init__(self, backbones: Sequence[Backbone], strategy: Strategy) -> None:
        """Nothing is loaded."""
        self.backbones = tuple(backbones)
        self.strategy = strategy
        # what modegap's capture reads off transformers' image processors: the output's size is always this one
        self.do_resize = True
        self.size = {"height": backbones[0].size, "width": backbones[0].size}

    def __call__(self, images: Sequence[Any]) -> torch.Tensor:
        """Resized with Pillow's bicubic filter, scaled to [0, 1], normalised by each tower's constants."""
        return torch.stack([torch.cat([self._pixels(image, b) for b in self.backbones]) for image in images])

    def _pixels(self, image: Any, backbone: Backbone) -> torch.Tensor:
        square = np.asarray(fit(image, backbone.size, self.strategy, backbone.mean), dtype=np.float32) / 255
        shape = (3, 1, 1)
        mean = torch.tensor(backbone.mean).reshape(shape)
        return (torch.from_numpy(square).permute(2, 0, 1) - mean) / torch.tensor(backbone.std).reshape(shape)


def fit(image: Any, size: int, strategy: Strategy, mean: Sequence[float]) -> Any:
    """A `size` x `size` PIL image."""
    from PIL import Image

    if strategy == "resize-naive":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if strategy == "letterbox":  # equal borders, so that an odd difference leaves one pixel to the crop
        border = tuple((max(image.size) - length) // 2 for length in image.size)
        padded = tuple(length + 2 * more for length, more in zip(image.size, border, strict=True))
        square = Image.new("RGB", padded, tuple(int(value * 255) for value in mean))
        square.paste(image, border)
        image = square
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(size * width / short), int(size * height / short)), Image.Resampling.BICUBIC)
    # a half pixel goes to the even side, as Python's round does in torchvision
    left, top = (round((length - size) / 2) for length in image.size)
    return image.crop((left, top, left + size, top + size))


class PrismaticProcessor:
    """Text and images to the model's tensors.

    Args:
        images: the image transform.
        tokenizer: the language model's, knowing `<image>`.
        patches: placeholders an image.
        template: the prompt around a question.
    """

    image_token = IMAGE

    def __init__(self, images: PrismaticImages, tokenizer: Any, patches: int, template: str) -> None:
        """Everything is given."""
        self.image_processor = images
        self.tokenizer = tokenizer
        self.patches = patches
        self.chat_template = template

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **_: Any) -> str:
        """The prompt of one question, its image in front."""
        parts = [part for message in messages for part in message["content"]]
        question = " ".join(part["text"] for part in parts if part["type"] == "text")
        media = "".join(IMAGE for part in parts if part["type"] == "image")
        return media + self.chat_template.format(question=question.strip())

    def expanded_ids(self, text: str, count: int) -> list[int]:
        """Token ids of a prompt whose image has `count` rows.

        Raises:
            ValueError: a text that does not name exactly one image.
        """
        if text.count(IMAGE) != 1:
            raise ValueError(f"a prompt has {text.count(IMAGE)} placeholders {IMAGE}; expected one")
        token = int(self.tokenizer.convert_tokens_to_ids(IMAGE))
        made = list(self.tokenizer(text.replace(IMAGE, "").strip())["input_ids"])
        return made[:1] + [token] * count + made[1:]

    def __call__(self, text: Sequence[str], images: Sequence[Any], **_: Any) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` [B, T] padded on the right, and `pixel_values`.

        The image's rows follow the sequence's first token (BOS), wherever the text has its placeholder.

        Raises:
            ValueError: a text that does not name exactly one image.
        """
        rows = [self.expanded_ids(one, self.patches) for one in text]
        width = max(len(row) for row in rows)
        pad = int(self.tokenizer.pad_token_id)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": self.image_processor(images)}
