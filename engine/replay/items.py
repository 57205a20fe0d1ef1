"""What one replayed sequence is: token ids, the positions that stored rows fill, the positions that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modegap.engine.datasets.base import Sample
from modegap.engine.errors import EngineError
from modegap.engine.models.collate import Collator, turn

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ReplayItem:
    """One sample as the decoder reads it.

    Attributes:
        index: the sample's number in its store.
        id: its id.
        tokens: token ids of the whole sequence, int64 [T].
        slot: positions that the t stored rows fill, ascending int64 [t].
        target: positions whose tokens are scored, ascending int64 [m], all above 0.
    """

    index: int
    id: str
    tokens: Int
    slot: Int
    target: Int

    def __len__(self) -> int:
        """Tokens in the sequence, T."""
        return len(self.tokens)

    @property
    def prompt_length(self) -> int:
        """Positions before the first scored one."""
        return int(self.target[0])

    def continued(self, answer: Int) -> ReplayItem:
        """The same prompt with another answer, which is scored.

        Raises:
            EngineError: stored rows stand behind the prompt, or the answer has no tokens.
        """
        start = self.prompt_length
        if len(self.slot) and self.slot[-1] >= start:
            raise EngineError(
                f"sample {self.id!r}: its stored rows stand among the scored tokens, so its answer cannot be "
                "replaced; replay it with a model that reads them as its prompt's media"
            )
        if not len(answer):
            raise EngineError(f"sample {self.id!r}: got an answer without tokens; give it a text")
        tokens = np.concatenate([self.tokens[:start], answer])
        return replace(self, tokens=tokens, target=np.arange(start, len(tokens)))


class Layout:
    """Rebuilds the token ids around a sample's media without the media, for one model's collator."""

    def __init__(self, collator: Collator) -> None:
        """Prompts are tokenised once each and length."""
        self.collator = collator
        self._known: dict[tuple[str | None, int], tuple[Int, Int]] = {}

    def prompt(self, question: str | None, count: int) -> tuple[Int, Int]:
        """Token ids of the prompt with `count` placeholders, and the placeholders' positions.

        Args:
            question: as `Sample.prompt`; None is the family's own.
            count: stored rows of the sample.

        Raises:
            EngineError: the processor has no placeholder, or the prompt does not hold exactly one run of it.
        """
        key = (question, count)
        if key not in self._known:
            self._known[key] = self._tokenise(question, count)
        return self._known[key]

    def _tokenise(self, question: str | None, count: int) -> tuple[Int, Int]:
        collator, style = self.collator, self.collator.style
        if style is None:
            raise EngineError(
                f"{type(collator.processor).__name__} names no placeholder, so a prompt cannot be laid out around "
                "stored rows; capture an llm_hidden_<k> too, whose token ids are stored"
            )
        text = style.render(collator.processor, question)
        parts = text.split(style.placeholder)
        if len(parts) != 2:
            raise EngineError(
                f"the prompt {text!r} holds {len(parts) - 1} placeholders {style.placeholder!r}; replay takes one "
                "medium a sample"
            )
        expand = getattr(collator.processor, "expanded_ids", None)  # modegap's own processors
        if expand is not None:
            with turn(collator.tokenizer):
                ids = expand(text, count)
        else:
            whole = style.placeholder.join([parts[0], *[""] * (count - 1), parts[1]])
            ids = collator.encode(whole, special=True)
        tokens = np.asarray(ids, dtype=np.int64)
        slot = np.flatnonzero(tokens == collator.media_token)
        if len(slot) != count:
            raise EngineError(
                f"the tokenizer made {len(slot)} tokens of {count} placeholders {style.placeholder!r}; capture an "
                "llm_hidden_<k> too, whose token ids are stored"
            )
        return tokens, slot

    def answer(self, text: str) -> Int:
        """Token ids that `collate(target=True)` appends for a text."""
        return np.asarray(self.collator.answer(Sample("", text)), dtype=np.int64)

    def text(self, question: str | None, ids: Int) -> tuple[Int, Int, int]:
        """Ids of a text model's sequence, the positions of the text's own tokens `ids`, and the first scored one.

        As `collate` does for text samples: a first token that nothing precedes is not scored.
        """
        before = np.asarray(self.collator.before_text(question), dtype=np.int64)
        tokens = np.concatenate([before, ids])
        return tokens, np.arange(len(before), len(tokens)), max(len(before), 1)


def layout_of(collator: Collator, index: int, sample: Sample, prompt: str | None) -> dict[str, Any]:
    """How a sample's prompt is laid out, for a store's provenance: a replay compares what it rebuilds with it."""
    tokens = collator.collate([sample], prompt=prompt).tensors["input_ids"][0]
    return {"sample": index, "runs": runs(tokens.tolist())}


def runs(tokens: Sequence[int] | Int) -> list[list[int]]:
    """Run lengths `[[token, count], ...]`: 576 placeholders are one pair."""
    found: list[list[int]] = []
    for token in np.asarray(tokens).tolist():
        if found and found[-1][0] == token:
            found[-1][1] += 1
        else:
            found.append([token, 1])
    return found
