"""The word-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .corpus import vocabulary
from .grammar import BOS, EOS, IMAGE, PAD, SPECIAL, UNK


def write_tokenizer(path: Path) -> None:
    """Writes `tokenizer.json` (tokenizers' own format): lower case, one token a word, `<s>` in front."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.save(str(path))


def read_tokenizer(path: Path) -> Any:
    """The `PreTrainedTokenizerFast` of a `tokenizer.json`; pads on the left, as generation needs."""
    import transformers

    build: Any = transformers.PreTrainedTokenizerFast
    return build(
        tokenizer_file=str(path),
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )
