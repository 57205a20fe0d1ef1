"""Digit names, captions and the vocabulary: all the language the lab has."""

from __future__ import annotations

import hashlib
import re

from .canvas import ATTRIBUTES

DIGITS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# LLaVA's prompt. The tokenizer lower-cases, splits off punctuation and drops the line break.
PROMPT = "<image>\nDescribe this image."
TEXT_PROMPT = "describe this image ."

CAPTIONS: tuple[str, ...] = (
    "a photo of the digit {digit}",
    "a picture of the digit {digit}",
    "an image of a {digit}",
    "this is the digit {digit}",
    "the image shows a {digit}",
    "the number {digit} , written by hand",
)

QUESTIONS: dict[str, tuple[str, ...]] = {
    "digit": ("which digit is it ?", "what is the digit ?"),
    "color": ("what color is the digit ?", "which color is it ?"),
    "place": ("where is the digit ?", "which place is it at ?"),
    "size": ("how large is the digit ?", "what size is the digit ?"),
    "background": ("what is the background ?", "which background is it ?"),
}

PAD, UNK, BOS, EOS, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<image>"
SPECIAL: tuple[str, ...] = (PAD, UNK, BOS, EOS, IMAGE)

_WORD = re.compile(r"[a-z]+|[.,?:]")


def words(text: str) -> list[str]:
    """The word tokens of a text: lower case, punctuation apart."""
    return _WORD.findall(text.lower())


def caption(digit: int, key: str) -> str:
    """The caption of a digit; `key` (a sample id, say) picks the phrasing, the same one on every machine."""
    pick = int.from_bytes(hashlib.sha256(f"caption/{key}".encode()).digest()[:4], "big") % len(CAPTIONS)
    return CAPTIONS[pick].format(digit=DIGITS[digit])


def named_digits(text: str) -> list[str]:
    """The digit words of a text, in order: how a generated caption is scored."""
    return [word for word in words(text) if word in DIGITS]


def attribute_words() -> frozenset[str]:
    """Every word that names a colour, place, size or background: never in a caption."""
    return frozenset(word for values in ATTRIBUTES.values() for word in values)
