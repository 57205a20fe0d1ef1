"""The text around the media: placeholder, default question and chat template of a model family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from modegap.engine.datasets.base import Modality

QUESTIONS: dict[Modality, str] = {
    "image": "Describe this image.",
    "audio": "Describe this audio.",
    "text": "",
}
# Ultravox is spoken to: the sound is the whole message unless a question is given.
SPOKEN = ("ultravox",)
# The paper feeds LLaVA the bare prompt; every other family is asked in its own chat template where it has
# one.
PLAIN = ("llavaprocessor",)


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How a question becomes the prompt text of a media sample.

    Attributes:
        modality: what the placeholder stands for.
        placeholder: the token that the processor expands to one a media row.
        inserted: the placeholder between its markers, where the family has some.
        wrap: `chat` applies the processor's chat template; `plain` puts the placeholder in front of the
            question.
        separator: what stands between placeholder and question when plain.
        question: asked where none is given; empty for the media alone.
    """

    modality: Modality
    placeholder: str
    inserted: str
    wrap: Literal["chat", "plain"]
    separator: str
    question: str

    def render(self, processor: Any, question: str | None) -> str:
        """The prompt of one sample: `question` (or the default one) with the placeholder put in.

        A question that already holds the placeholder is taken as it stands.
        """
        if question is None:
            question = self.question
        if self.placeholder in question:
            return question
        if self.wrap == "plain":
            return f"{self.inserted}{self.separator}{question}"
        content: list[dict[str, str]] = [{"type": self.modality}]
        if question:
            content.append({"type": "text", "text": question})
        message = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def style_of(processor: Any, modality: Modality) -> PromptStyle | None:
    """The style of a processor; None for a tokenizer or a processor without a placeholder."""
    placeholder = getattr(processor, f"{modality}_token", None)
    if placeholder is None:
        return None
    placeholder = str(placeholder)
    family = type(processor).__name__.lower()
    template = getattr(processor, "chat_template", None)
    asked = "" if family.startswith(SPOKEN) else QUESTIONS[modality]
    if template and family not in PLAIN:
        return PromptStyle(modality, placeholder, placeholder, "chat", "", asked)
    if family.startswith("qwen2audio"):  # the base model's own form, where there is no chat template
        around = (getattr(processor, "audio_bos_token", ""), getattr(processor, "audio_eos_token", ""))
        inserted = f"{around[0]}{placeholder}{around[1]}"
        return PromptStyle(modality, placeholder, inserted, "plain", "", asked)
    return PromptStyle(modality, placeholder, placeholder, "plain", "\n", asked)


def modality_of_processor(processor: Any) -> Modality:
    """`image` or `audio` where the processor prepares such media, else `text`."""
    if getattr(processor, "image_processor", None) is not None:
        return "image"
    return "audio" if getattr(processor, "feature_extractor", None) is not None else "text"
