"""The text-only corpus of the decoder: scenes with captions, questions and answers, facts about numbers.

A scene in words stands where an image will stand later, right after the start token, so that the decoder
learns to look there for the digit. That is what an adapter has to hold on to: the decoder is frozen by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .canvas import ATTRIBUTES
from .grammar import CAPTIONS, DIGITS, QUESTIONS, SPECIAL, TEXT_PROMPT, words

# A template and the attributes it tells. The digit comes early in some and late in others.
SCENES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a {size} {color} {digit} on a {background} background .", ("size", "color", "background")),
    ("there is a {color} {digit} at the {place} .", ("color", "place")),
    ("the digit {digit} is {color} and {size} .", ("color", "size")),
    ("a {digit} at the {place} of a {background} image .", ("place", "background")),
    ("{digit} .", ()),
    ("{digit} {color} {size} {place} {background} .", ("color", "size", "place", "background")),
    ("{background} {place} {size} {color} {digit} .", ("color", "size", "place", "background")),
    ("{color} {background} {digit} {place} {size} .", ("color", "size", "place", "background")),
    ("{size} {digit} {background} .", ("size", "background")),
    ("on {background} , at the {place} , is a {digit} , {size} and {color} .", tuple(ATTRIBUTES)),
    ("a hand has written the number {digit} .", ()),
    (
        "the color is {color} , the size is {size} , the place is {place} , the digit is {digit} .",
        ("color", "size", "place"),
    ),
)
ASIDES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the background is {background} .", ("background",)),
    ("it is {color} .", ("color",)),
    ("it is {size} and {color} .", ("size", "color")),
    ("the place is {place} .", ("place",)),
    ("the image has a {background} background and a {size} digit .", ("size", "background")),
)


def scene(rng: np.random.Generator) -> tuple[str, dict[str, str], list[str]]:
    """A scene in 1 to 4 sentences, its facts (digit and all attributes) and the facts the sentences tell."""
    facts = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
    facts["digit"] = DIGITS[rng.integers(len(DIGITS))]
    parts = [SCENES[rng.integers(len(SCENES))]]
    for _ in range(rng.integers(0, 3)):
        parts.insert(rng.integers(len(parts) + 1), ASIDES[rng.integers(len(ASIDES))])
    if rng.random() < 0.2:
        parts.append(SCENES[rng.integers(len(SCENES))])
    told = ["digit", *dict.fromkeys(name for _, names in parts for name in names)]
    return " ".join(template.format(**facts) for template, _ in parts), facts, told


def captioned(rng: np.random.Generator) -> str:
    """A scene, the prompt and a caption that names the digit only."""
    text, facts, _ = scene(rng)
    return f"{text} {TEXT_PROMPT} {CAPTIONS[rng.integers(len(CAPTIONS))].format(digit=facts['digit'])}"


def answered(rng: np.random.Generator) -> str:
    """A scene and questions about what it tells, each with its answer.

    More than half have one question only, so that a greedy answer ends after a word.
    """
    text, facts, told = scene(rng)
    count = 1 if rng.random() < 0.55 else len(told)
    asked = [told[place] for place in rng.permutation(len(told))[:count].tolist()]
    return f"{text} " + " . ".join(f"{QUESTIONS[name][rng.integers(2)]} {facts[name]}" for name in asked)


def fact(rng: np.random.Generator) -> str:
    """One true statement about numbers."""
    first, second = (int(value) for value in rng.permutation(10)[:2])
    low, high = min(first, second), max(first, second)
    kind = rng.integers(6)
    if kind == 0:
        return f"{DIGITS[high]} is more than {DIGITS[low]}"
    if kind == 1:
        return f"{DIGITS[low]} is less than {DIGITS[high]}"
    if kind == 2:
        return f"{DIGITS[first]} is {'odd' if first % 2 else 'even'}"
    if kind == 3:
        return f"{DIGITS[low % 9 + 1]} comes after {DIGITS[low % 9]}"
    if kind == 4:
        return f"{DIGITS[high - low]} and {DIGITS[low]} is {DIGITS[high]}"
    return f"the number {DIGITS[first]} is not the number {DIGITS[second]}"


def lone_caption(rng: np.random.Generator) -> str:
    """A caption with nothing before it: what a text baseline is fed."""
    return CAPTIONS[rng.integers(len(CAPTIONS))].format(digit=DIGITS[rng.integers(len(DIGITS))])


KINDS: Mapping[Callable[[np.random.Generator], str], float] = {
    captioned: 0.3,
    answered: 0.55,
    fact: 0.08,
    lone_caption: 0.07,
}


def document(rng: np.random.Generator) -> str:
    """One document of the corpus."""
    kinds = list(KINDS)
    return kinds[rng.choice(len(kinds), p=list(KINDS.values()))](rng)


def vocabulary() -> list[str]:
    """Special tokens, then every word that the grammar can produce, sorted: the index is the token id."""
    sources = [TEXT_PROMPT, "user : assistant", "is more than less odd even comes after and not the number"]
    sources += [*CAPTIONS, *DIGITS, *(form for forms in QUESTIONS.values() for form in forms)]
    sources += [template for template, _ in (*SCENES, *ASIDES)]
    sources += [value for values in ATTRIBUTES.values() for value in values]
    found = {word for source in sources for word in words(source)}
    return [*SPECIAL, *sorted(found)]
