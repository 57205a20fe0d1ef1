"""Small checkpoints in the layouts that the seven systems are published in, in a Hub cache of the test's own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from modegap.engine.datasets import Sample

hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()
torch.set_num_threads(1)

ULTRAVOX = "fixie-ai/ultravox-v0_6-llama-3_1-8b"
LLAMA = "meta-llama/Llama-3.1-8B"
INSTRUCT = "meta-llama/Llama-3.1-8B-Instruct"
WHISPER = "openai/whisper-large-v3-turbo"
VICUNA = "lmsys/vicuna-7b-v1.5"
LLAVA = "llava-hf/llava-1.5-7b-hf"
QWEN = "Qwen/Qwen2-Audio-7B-Instruct"
PRISMATIC = "TRI-ML/prismatic-vlms"
DINO = "timm/vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP = "timm/vit_so400m_patch14_siglip_224.webli"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDTH = 48
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
WHISPER_CONFIG = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 40,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "init_std": 0.2,
}
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Hub:
    """A Hub cache with what a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, repo: str) -> Path:
        """Where a repository's files go."""
        home = self.root / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(COMMIT)
        files = home / "snapshots" / COMMIT
        files.mkdir(parents=True, exist_ok=True)
        return files


def byte_tokenizer(special: list[str], template: str | None = None, bos: bool = True) -> Any:
    """Llama 3's kind: byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], core.token_to_id(special[0]))]
        )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def piece_tokenizer(special: tuple[str, ...] = ()) -> Any:
    """Vicuna's kind: pieces that mark spaces, one put in front of every text."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:'\n"
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", "▁", *letters])}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    core.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>", *special)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def llama_tokenizer(template: bool) -> Any:
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    return byte_tokenizer(special, LLAMA_TEMPLATE if template else None)


def drawn(model: Any, seed: int) -> Any:
    """Weights that differ from layer to layer and let every part be seen in the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        elif "norm" in name:
            weight.data = 1 + 0.2 * torch.randn(weight.shape, generator=generator)
        else:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def write_text(hub: Hub, repo: str, tokenizer: Any, seed: int, **more: Any) -> Any:
    """A Llama with its tokenizer."""
    model = drawn(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, vocab_size=len(tokenizer), **more)), seed)
    model.save_pretrained(hub.folder(repo))
    tokenizer.save_pretrained(hub.folder(repo))
    return model


def write_llama(hub: Hub, repo: str = LLAMA) -> Any:
    return write_text(hub, repo, llama_tokenizer(template=repo == INSTRUCT), 1)


def write_vicuna(hub: Hub) -> Any:
    return write_text(hub, VICUNA, piece_tokenizer(), 2)


def write_llava(hub: Hub) -> Any:
    tokenizer = piece_tokenizer(("<image>", "<pad>"))
    tokenizer.pad_token = "<pad>"
    tokenizer.padding_side = "left"
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=hf.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = drawn(hf.LlavaForConditionalGeneration(config), 3)
    images = getattr(hf, "CLIPImageProcessorPil", hf.CLIPImageProcessor)(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(hub.folder(LLAVA))
    processor.save_pretrained(hub.folder(LLAVA))
    return model


def write_qwen_audio(hub: Hub) -> Any:
    special = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer = byte_tokenizer(special, bos=False)
    tokenizer.pad_token, tokenizer.padding_side = "<|endoftext|>", "left"
    encoder = hf.Qwen2AudioEncoderConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_source_positions=50,
        num_mel_bins=16,
    )
    config = hf.Qwen2AudioConfig(
        audio_config=encoder.to_dict(),
        text_config=hf.Qwen2Config(**TEXT, vocab_size=len(tokenizer)).to_dict(),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = drawn(hf.Qwen2AudioForConditionalGeneration(config), 4)
    extractor = hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1, return_attention_mask=True)
    processor = hf.Qwen2AudioProcessor(extractor, tokenizer, chat_template=QWEN_TEMPLATE)
    model.save_pretrained(hub.folder(QWEN))
    processor.save_pretrained(hub.folder(QWEN))
    return model


def write_whisper(hub: Hub) -> Any:
    model = drawn(hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER_CONFIG)), 5)
    model.save_pretrained(hub.folder(WHISPER))
    return model


def ultravox_weights(
    norm_in_the_middle: bool, act: str, stack: int = 8, hidden: int = 40
) -> dict[str, torch.Tensor]:
    """The projector, by its published names."""
    generator = torch.Generator().manual_seed(6)
    middle = hidden // 2 if act == "swiglu" else hidden
    norm = ("ln_mid", middle) if norm_in_the_middle else ("ln_post", WIDTH)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    return {
        "multi_modal_projector.ln_pre.weight": 0.4 + draw(32 * stack),
        "multi_modal_projector.linear_1.weight": draw(hidden, 32 * stack),
        "multi_modal_projector.linear_2.weight": draw(WIDTH, middle),
        f"multi_modal_projector.{norm[0]}.weight": 0.4 + draw(norm[1]),
    }


def write_ultravox(
    hub: Hub,
    *,
    norm_in_the_middle: bool = True,
    act: str = "swiglu",
    block: int | None = None,
    tower: bool = True,
    repo: str = ULTRAVOX,
) -> dict[str, Any]:
    """As v0.5 and v0.6 are published: projector and audio tower; the language model by its id."""
    write_llama(hub, INSTRUCT)
    weights = ultravox_weights(norm_in_the_middle, act)
    config: dict[str, Any] = {
        "architectures": ["UltravoxModel"],
        "auto_map": {
            "AutoConfig": "ultravox_config.UltravoxConfig",
            "AutoModel": "ultravox_model.UltravoxModel",
            "AutoProcessor": "ultravox_processing.UltravoxProcessor",
        },
        "model_type": "ultravox",
        "hidden_size": 40,
        "stack_factor": 8,
        "norm_init": 0.4,
        "projector_act": act,
        "projector_ln_mid": norm_in_the_middle,
        "audio_latency_block_size": block,
        "text_model_id": INSTRUCT,
        "torch_dtype": "float32",
        "ignore_index": -100,
        "initializer_range": 0.02,
    }
    if tower:
        whisper = drawn(hf.WhisperForConditionalGeneration(hf.WhisperConfig(**WHISPER_CONFIG)), 7)
        encoder = whisper.model.encoder.state_dict()
        weights |= {f"audio_tower.{name}": value.clone() for name, value in encoder.items()}
        config["audio_config"] = {**WHISPER_CONFIG, "model_type": "whisper", "_name_or_path": WHISPER}
    else:
        write_whisper(hub)
        config["audio_model_id"] = WHISPER
    folder = hub.folder(repo)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    llama_tokenizer(template=True).save_pretrained(folder)
    return {"config": config, "weights": weights}


def timm_weights(
    kind: str, width: int = 32, depth: int = 3, grid: int = 5, seed: int = 8
) -> dict[str, torch.Tensor]:
    """A vision transformer by timm's names; its position table is for another image size, as DINOv2's is."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    found = {
        "pos_embed": draw(1, grid * grid, width),
        "patch_embed.proj.weight": draw(width, 3, 14, 14),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
    }
    if kind == "dinov2":
        found |= {"cls_token": draw(1, 1, width), "reg_token": draw(1, 4, width)}
    else:
        found |= {"attn_pool.latent": draw(1, 1, width), "attn_pool.q.weight": draw(width, width)}
    for i in range(depth):
        shapes = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
        if kind == "dinov2":
            shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        for name, shape in shapes.items():
            found[f"blocks.{i}.{name}"] = draw(*shape) + (
                1 if name.startswith("norm") and "weight" in name else 0
            )
    return found


def prismatic_weights(fused: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """Projector and language model by their published names; the table has 64 rows more, as theirs has."""
    generator = torch.Generator().manual_seed(9)
    vision = 64 if fused else 32
    widths = [vision, *([4 * vision] if fused else []), WIDTH, WIDTH]
    projector = {}
    for i, (wide, out) in enumerate(pairwise(widths)):
        projector[f"projector.{2 * i}.weight"] = torch.randn(out, wide, generator=generator) * 0.2
        projector[f"projector.{2 * i}.bias"] = torch.randn(out, generator=generator) * 0.2
    rows = (len(piece_tokenizer()) // 64 + 1) * 64
    llm = drawn(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, vocab_size=rows)), 10)
    return {
        "projector": projector,
        "llm_backbone": {f"llm.{name}": value.clone() for name, value in llm.state_dict().items()},
    }


def write_prismatic(
    hub: Hub,
    name: str = "dinov2-224px+7b",
    *,
    backbone: str = "dinov2-vit-l",
    strategy: str = "letterbox",
    folder: Path | None = None,
    extra: dict[str, dict[str, torch.Tensor]] | None = None,
) -> Path:
    """`config.json` and `checkpoints/latest-checkpoint.pt`; vision weights where timm publishes them."""
    write_vicuna(hub)
    for repo, kind in ((DINO, "dinov2"), (SIGLIP, "siglip")):
        save_file(timm_weights(kind), hub.folder(repo) / "model.safetensors", metadata={"format": "pt"})
    home = folder or hub.folder(PRISMATIC) / name
    (home / "checkpoints").mkdir(parents=True, exist_ok=True)
    fused = backbone.startswith("dinosiglip")
    settings = {
        "model_id": name,
        "arch_specifier": f"no-align+{'fused-' if fused else ''}gelu-mlp",
        "vision_backbone_id": backbone,
        "llm_backbone_id": "vicuna-v15-7b",
        "image_resize_strategy": strategy,
        "llm_max_length": 2048,
    }
    (home / "config.json").write_text(json.dumps({"model": settings, "stage": "finetune"}))
    torch.save(
        {"model": prismatic_weights(fused) | (extra or {})}, home / "checkpoints" / "latest-checkpoint.pt"
    )
    return home


WRITERS = {
    "ultravox": write_ultravox,
    "qwen2-audio": write_qwen_audio,
    "llava": write_llava,
    "prismatic-dinov2": write_prismatic,
    "prismatic-siglip": lambda hub: write_prismatic(hub, "siglip-224px+7b", backbone="siglip-vit-so400m"),
    "llama": write_llama,
    "vicuna": write_vicuna,
}
KINDS = {
    "ultravox": "audio",
    "qwen2-audio": "audio",
    "llava": "image",
    "prismatic-dinov2": "image",
    "prismatic-siglip": "image",
    "llama": "text",
    "vicuna": "text",
}
WORDS = ["a", "tall", "man", "rides", "his", "red", "bike", "home", "late"]


def sentence(index: int) -> str:
    rng = np.random.default_rng(index)
    return " ".join(rng.choice(WORDS, size=2 + index % 4))


def samples(kind: str, count: int) -> list[Sample]:
    """Images of several shapes, sounds of several lengths, or sentences."""
    rng = np.random.default_rng(11)
    found = []
    for i in range(count):
        media: Any = None
        if kind == "image":
            size = (40 + 7 * (i % 3), 50 - 6 * (i % 2), 3)
            media = Image.fromarray(rng.integers(0, 256, size=size, dtype=np.uint8))
        elif kind == "audio":
            media = (rng.standard_normal(3000 + 2410 * (i % 4)).astype(np.float32) * 0.1, 16000)
        found.append(Sample(f"{kind}-{i}", sentence(i), media, labels={"half": ["left", "right"][i % 2]}))
    return found
