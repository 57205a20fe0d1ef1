"""Multimodal families of the installed transformers, small and with random weights.

Each entry makes a model and the tensors of two samples, of different length where the family allows it, as the
family's own processor lays them out (most of those processors need torchvision, which modegap does not).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

hf.logging.set_verbosity_error()
torch.set_num_threads(1)

WIDTH, VOCAB, MEDIA, START, END, VIDEO = 48, 64, 5, 6, 7, 8
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.2,
}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 40,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Family:
    """How to build one, and what is true of it.

    `adapter` is whether adapter_output is a module's own output (else the decoder's input at the placeholders);
    `replays` is whether its rows can be put back into the decoder.
    """

    needs: tuple[str, ...]
    make: Callable[[], tuple[Any, dict[str, torch.Tensor]]]
    modality: str = "image"
    adapter: bool = True
    replays: bool = True
    rows: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def installed(self) -> bool:
        return all(hasattr(hf, name) for name in self.needs)


def processor(modality: str) -> Any:
    """What `adopt` needs of a processor: a tokenizer, and which media it prepares."""
    names = ["<pad>", "<unk>", "<s>", "</s>", *(f"t{i}" for i in range(4, VOCAB))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:4]])
    tokens = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    kind = "image_processor" if modality == "image" else "feature_extractor"
    return SimpleNamespace(tokenizer=tokens, **{kind: SimpleNamespace(), f"{modality}_token": "t5"})


def sequence(counts: list[int], tails: list[int], media: int = MEDIA) -> dict[str, torch.Tensor]:
    """Left-padded `<s> media... text...` with so many placeholders and text tokens a sample."""
    rows = [
        [2, 10, START, *[media] * count, END, *range(20, 20 + tail)]
        for count, tail in zip(counts, tails, strict=True)
    ]
    width = max(len(row) for row in rows)
    tokens = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def llava_next() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**{**VISION, "initializer_factor": 4.0}),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=MEDIA,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    model = hf.LlavaNextForConditionalGeneration(config)
    return model, any_resolution()


def llava_onevision() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=MEDIA,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    return model, any_resolution()


def any_resolution() -> dict[str, torch.Tensor]:
    """Three tiles and five: 16 patches, then a grid of 8 x 4 or 8 x 8 with a newline after each of its rows."""
    values = pixels(2, 5, 3, 16, 16)
    values[0, 3:] = 0
    sizes = torch.tensor([[32, 16], [32, 32]])
    return {**sequence([16 + 40, 16 + 72], [5, 3]), "pixel_values": values, "image_sizes": sizes}


def qwen_vision(grid: list[list[int]]) -> dict[str, torch.Tensor]:
    count = sum(t * h * w for t, h, w in grid)
    return {"pixel_values": pixels(count, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor(grid)}


def qwen_text(section: list[int]) -> dict[str, Any]:
    return {
        **TEXT,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": section},
        "image_token_id": MEDIA,
    }


QWEN_TOKENS = {
    "image_token_id": MEDIA,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def qwen2_vl() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {"embed_dim": 32, "hidden_size": WIDTH, "depth": 2, "num_heads": 4, "patch_size": 4}
    config = hf.Qwen2VLConfig(text_config=qwen_text([2, 2, 2]), vision_config=vision, **QWEN_TOKENS)
    grid = [[1, 4, 4], [1, 8, 4]]
    return hf.Qwen2VLForConditionalGeneration(config), with_types(
        {**sequence([4, 8], [6, 3]), **qwen_vision(grid)}
    )


def qwen2_5_vl() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "depth": 2,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = hf.Qwen2_5_VLConfig(text_config=qwen_text([2, 2, 2]), vision_config=vision, **QWEN_TOKENS)
    grid = [[1, 8, 8], [1, 12, 4]]  # windows of 4 x 4 patches: rows leave the merger in the windows' order
    return hf.Qwen2_5_VLForConditionalGeneration(config), with_types(
        {**sequence([16, 12], [6, 3]), **qwen_vision(grid)}
    )


def qwen3_vl() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "depth": 3,
        "num_heads": 4,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**TEXT, "head_dim": 12, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 2, 2]}}
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS)
    grid = [[1, 4, 4], [1, 8, 4]]
    return hf.Qwen3VLForConditionalGeneration(config), with_types(
        {**sequence([4, 8], [6, 3]), **qwen_vision(grid)}
    )


def with_types(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers 5 counts Qwen's positions by token types."""
    if int(hf.__version__.split(".")[0]) >= 5:
        tensors["mm_token_type_ids"] = (tensors["input_ids"] == MEDIA).int()
    return tensors


def internvl() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {**VISION, "image_size": [16, 16], "patch_size": [4, 4]}
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**vision),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=MEDIA,
    )
    model = hf.InternVLForConditionalGeneration(config)
    return model, {**sequence([4, 8], [5, 3]), "pixel_values": pixels(3, 3, 16, 16)}  # one tile and two


def gemma3() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(
            **{**TEXT, "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12}
        ),
        vision_config=hf.SiglipVisionConfig(**{**VISION, "vision_use_head": False}).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=MEDIA,
        boi_token_index=START,
        eoi_token_index=END,
    )
    tensors = {**sequence([4, 4], [5, 3]), "pixel_values": pixels(2, 3, 16, 16)}
    tensors["token_type_ids"] = (tensors["input_ids"] == MEDIA).long()
    model = hf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(dict(model.named_parameters())[adapter_weight(model)], std=0.2)  # zeros otherwise
    return model, tensors


def adapter_weight(model: Any) -> str:
    return next(name for name, _ in model.named_parameters() if "mm_input_projection_weight" in name)


def paligemma() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**{**TEXT, "head_dim": 12}),
        vision_config=hf.SiglipVisionConfig(**{**VISION, "projection_dim": WIDTH, "vision_use_head": False}),
        image_token_index=MEDIA,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    tensors = {**sequence([16, 16], [5, 3]), "pixel_values": pixels(2, 3, 16, 16)}
    tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
    return hf.PaliGemmaForConditionalGeneration(config), tensors


def idefics3() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.Idefics3Config(
        vision_config={**VISION},
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=MEDIA,
        scale_factor=2,
        pad_token_id=0,
    )
    return hf.Idefics3ForConditionalGeneration(config), tiles()


def smolvlm() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.SmolVLMConfig(
        vision_config={**VISION},
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=MEDIA,
        scale_factor=2,
        pad_token_id=0,
    )
    return hf.SmolVLMForConditionalGeneration(config), tiles()


def tiles() -> dict[str, torch.Tensor]:
    """One tile and two, the first sample's second one padding (all zeros), four tokens each."""
    values, mask = pixels(2, 2, 3, 16, 16), torch.ones((2, 2, 16, 16), dtype=torch.long)
    values[0, 1], mask[0, 1] = 0, 0
    return {**sequence([4, 8], [6, 3]), "pixel_values": values, "pixel_attention_mask": mask}


def mistral3() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {**VISION, "num_attention_heads": 4, "head_dim": 8, "image_size": 32}
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**vision),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=MEDIA,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    model = hf.Mistral3ForConditionalGeneration(config)
    sizes = torch.tensor([[16, 16], [8, 16]])
    return model, {**sequence([4, 2], [5, 3]), "pixel_values": pixels(2, 3, 16, 16), "image_sizes": sizes}


def aya_vision() -> tuple[Any, dict[str, torch.Tensor]]:
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**{**VISION, "vision_use_head": False}),
        text_config=hf.Cohere2Config(**{**TEXT, "sliding_window": 32}),
        image_token_index=MEDIA,
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return hf.AyaVisionForConditionalGeneration(config), {
        **sequence([4, 8], [5, 3]),
        "pixel_values": pixels(3, 3, 16, 16),
    }


def mllama() -> tuple[Any, dict[str, torch.Tensor]]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = {**TEXT, "cross_attention_layers": [1], "rope_scaling": rope}
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=MEDIA)
    model = hf.MllamaForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.ones_(weight)  # zero gates would let no image through
    tensors = sequence([1, 1], [5, 3])
    length = tensors["input_ids"].shape[1]
    values = pixels(2, 1, 2, 3, 16, 16)
    values[0, 0, 1] = 0
    return model, {
        **tensors,
        "pixel_values": values,
        "aspect_ratio_ids": torch.tensor([[1], [2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0]], [[1, 1]]]),
        "cross_attention_mask": torch.ones((2, length, 1, 2), dtype=torch.long),
    }


def voxtral() -> tuple[Any, dict[str, torch.Tensor]]:
    audio = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_mel_bins": 16,
        "max_source_positions": 40,
        "initializer_range": 0.2,
    }
    config = hf.VoxtralConfig(
        audio_config=audio,
        text_config=hf.LlamaConfig(**{**TEXT, "head_dim": 12}).to_dict(),
        audio_token_id=MEDIA,
    )
    # 80 mel frames, 40 encoder frames, 10 tokens a chunk: one chunk and two
    return hf.VoxtralForConditionalGeneration(config), {
        **sequence([10, 20], [5, 3]),
        "input_features": pixels(3, 16, 80),
    }


def granite_speech() -> tuple[Any, dict[str, torch.Tensor]]:
    encoder = {
        "input_dim": 16,
        "num_layers": 2,
        "hidden_dim": 32,
        "feedforward_mult": 2,
        "num_heads": 4,
        "dim_head": 8,
        "output_dim": 12,
        "context_size": 10,
        "max_pos_emb": 16,
        "conv_kernel_size": 3,
    }
    projector = hf.Blip2QFormerConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        encoder_hidden_size=32,
        initializer_range=0.2,
        cross_attention_frequency=1,
    )
    config = hf.GraniteSpeechConfig(
        encoder_config=encoder,
        text_config=hf.GraniteConfig(**TEXT).to_dict(),
        projector_config=projector.to_dict(),
        audio_token_index=MEDIA,
        has_lora_adapter=False,
        downsample_rate=5,
        window_size=15,
    )
    mask = torch.ones((2, 6), dtype=torch.bool)
    mask[1, 3:] = False
    return hf.GraniteSpeechForConditionalGeneration(config), {
        **sequence([6, 3], [5, 3]),
        "input_features": pixels(2, 30, 16),
        "input_features_mask": mask,
    }


def audio_flamingo() -> tuple[Any, dict[str, torch.Tensor]]:
    audio = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_mel_bins": 16,
        "max_source_positions": 40,
        "initializer_range": 0.2,
    }
    config = hf.AudioFlamingo3Config(
        audio_config=audio, text_config=hf.Qwen2Config(**TEXT).to_dict(), audio_token_id=MEDIA
    )
    mask = torch.ones((2, 80), dtype=torch.long)
    mask[1, 40:] = 0
    return hf.AudioFlamingo3ForConditionalGeneration(config), {
        **sequence([20, 10], [5, 3]),
        "input_features": pixels(2, 16, 80),
        "input_features_mask": mask,
    }


def phi4_multimodal() -> tuple[Any, dict[str, torch.Tensor]]:
    audio = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_blocks": 2,
        "num_attention_heads": 4,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "input_size": 16,
        "nemo_conv_channels": 32,
        "bias_max_distance": 20,
        "audio_token_id": MEDIA,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "crop_size": 16,
        "image_token_id": VIDEO,
    }
    config = hf.Phi4MultimodalConfig(
        **{**TEXT, "rope_scaling": None, "original_max_position_embeddings": 256},
        audio_config=hf.Phi4MultimodalAudioConfig(**audio),
        vision_config=hf.Phi4MultimodalVisionConfig(**vision),
    )
    mask = torch.ones((2, 48), dtype=torch.bool)
    mask[1, 24:] = False
    return hf.Phi4MultimodalForCausalLM(config), {
        **sequence([6, 3], [5, 3]),
        "audio_input_features": pixels(2, 48, 16),
        "audio_embed_sizes": torch.tensor([6, 3]),
        "audio_attention_mask": mask,
    }


FAMILIES = {
    "llava_next": Family(("LlavaNextForConditionalGeneration",), llava_next, adapter=False),
    "llava_onevision": Family(("LlavaOnevisionForConditionalGeneration",), llava_onevision, adapter=False),
    "qwen2_vl": Family(
        ("Qwen2VLForConditionalGeneration", "Qwen2VLTextConfig"), qwen2_vl, adapter=False, replays=False
    ),
    "qwen2_5_vl": Family(
        ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLTextConfig"),
        qwen2_5_vl,
        adapter=False,
        replays=False,
    ),
    "qwen3_vl": Family(("Qwen3VLForConditionalGeneration",), qwen3_vl, adapter=False, replays=False),
    "internvl": Family(("InternVLForConditionalGeneration",), internvl),
    "gemma3": Family(("Gemma3ForConditionalGeneration",), gemma3, replays=False),
    "paligemma": Family(("PaliGemmaForConditionalGeneration",), paligemma, adapter=False, replays=False),
    "idefics3": Family(("Idefics3ForConditionalGeneration",), idefics3),
    "smolvlm": Family(("SmolVLMForConditionalGeneration",), smolvlm),
    "mistral3": Family(("Mistral3ForConditionalGeneration",), mistral3),
    "aya_vision": Family(("AyaVisionForConditionalGeneration",), aya_vision),
    "mllama": Family(("MllamaForConditionalGeneration",), mllama, replays=False, rows=False),
    "voxtral": Family(("VoxtralForConditionalGeneration",), voxtral, modality="audio"),
    "granite_speech": Family(("GraniteSpeechForConditionalGeneration",), granite_speech, modality="audio"),
    "audio_flamingo": Family(("AudioFlamingo3ForConditionalGeneration",), audio_flamingo, modality="audio"),
    "phi4_multimodal": Family(
        ("Phi4MultimodalForCausalLM",), phi4_multimodal, modality="audio", adapter=False, replays=False
    ),
}
