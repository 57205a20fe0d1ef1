"""Real architectures with random weights, small enough to run in milliseconds; nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from modegap.engine.datasets import Sample
from modegap.engine.models import LoadedModel, adopt

hf.logging.set_verbosity_error()
torch.set_num_threads(1)  # a second thread only spins on matrices this small: 153 s of CPU time became 32

WORDS = [
    *"abcdefgh.",
    "Describe",
    "this",
    "image",
    "audio",
    "photo",
    "of",
    "cat",
    "dog",
    "red",
    "blue",
    "tall",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(WORDS) + len(SPECIAL),
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ENCODER_FRAMES = 50


def tokenizer(side: str = "left", bos: bool = True) -> hf.PreTrainedTokenizerFast:
    ids = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
        )
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:],
        padding_side=side,
    )


def llava(side: str = "left", seed: int = 0, layer: int = -2) -> LoadedModel:
    torch.manual_seed(seed)
    vision = hf.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        initializer_factor=4.0,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=16,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
    )
    images = getattr(hf, "CLIPImageProcessorPil", hf.CLIPImageProcessor)(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(side),
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return adopt(hf.LlavaForConditionalGeneration(config).eval(), processor, name="tiny/llava")


def audio(side: str = "left", seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    encoder = hf.Qwen2AudioEncoderConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_source_positions=ENCODER_FRAMES,
        num_mel_bins=16,
        initializer_range=0.2,
    )
    config = hf.Qwen2AudioConfig(
        audio_config=encoder.to_dict(),
        text_config=hf.Qwen2Config(**TEXT).to_dict(),
        audio_token_index=SPECIAL.index("<|AUDIO|>"),
        initializer_range=0.2,
    )
    extractor = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1, return_attention_mask=True)
    template = (
        "{% for message in messages %}<s> "
        "{% for part in message['content'] %}{% if part['type'] == 'audio' %}"
        "<|audio_bos|><|AUDIO|><|audio_eos|> "
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} </s>"
    )
    processor = hf.Qwen2AudioProcessor(extractor, tokenizer(side, bos=False), chat_template=template)
    return adopt(hf.Qwen2AudioForConditionalGeneration(config).eval(), processor, name="tiny/audio")


def text(kind: str = "llama", side: str = "left", seed: int = 0, bos: bool = True) -> LoadedModel:
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = hf.GPT2Config(
            n_embd=48,
            n_layer=3,
            n_head=4,
            n_positions=128,
            vocab_size=TEXT["vocab_size"],
            initializer_range=0.25,
            bos_token_id=2,
            eos_token_id=3,
        )
        model = hf.GPT2LMHeadModel(config)
    elif kind == "opt":
        config = hf.OPTConfig(
            hidden_size=48,
            ffn_dim=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            vocab_size=TEXT["vocab_size"],
            word_embed_proj_dim=48,
            init_std=0.25,
        )
        model = hf.OPTForCausalLM(config)
    else:
        config = (hf.Qwen2Config if kind == "qwen2" else hf.LlamaConfig)(**TEXT)
        model = (hf.Qwen2ForCausalLM if kind == "qwen2" else hf.LlamaForCausalLM)(config)
    return adopt(model.eval(), tokenizer(side, bos), name=f"tiny/{kind}")


def caption(index: int) -> str:
    rng = np.random.default_rng(index)
    return " ".join(rng.choice(WORDS, size=1 + index % 7))


def labels(index: int) -> dict[str, str | int | float | None]:
    return {
        "kind": ["cat", "dog"][index % 2],
        "score": index / 4,
        "note": None if index % 3 == 0 else f"n{index}",
    }


def image_samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, size=(count, 20, 24, 3), dtype=np.uint8)
    return [
        Sample(f"image-{i}", caption(i), Image.fromarray(pixels[i]), labels=labels(i)) for i in range(count)
    ]


def audio_samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(8)
    found = []
    for i in range(count):
        wave = rng.standard_normal(3200 + 1600 * (i % 7)).astype(np.float32) * 0.1
        found.append(Sample(f"audio-{i}", caption(i), (wave, 16000), labels=labels(i)))
    return found


def text_samples(count: int) -> list[Sample]:
    return [Sample(f"text-{i}", caption(i), labels=labels(i)) for i in range(count)]


FAMILIES = {
    "llava": (llava, image_samples),
    "audio": (audio, audio_samples),
    "llama": (lambda side="left": text("llama", side), text_samples),
    "qwen2": (lambda side="left": text("qwen2", side), text_samples),
    "gpt2": (lambda side="left": text("gpt2", side), text_samples),
    "opt": (lambda side="left": text("opt", side), text_samples),
}
