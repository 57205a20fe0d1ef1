"""What the published layouts mean: against plain formulas, transformers' own modules and stand-in remote code."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from modegap.engine.capture import Capturer
from modegap.engine.datasets import Sample
from modegap.engine.errors import EngineError
from modegap.engine.models import load, trial
from modegap.engine.models.prismatic.backbones import BACKBONES
from modegap.engine.models.prismatic.processor import PrismaticImages, fit
from modegap.engine.models.prismatic.vision import patch_features, resample
from modegap.engine.models.ultravox.encoder import SpeechEncoder
from modegap.engine.models.ultravox.model import tokens

pub = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    return pub.Hub(tmp_path)


def opened(hub: Any, name: Any, **options: Any) -> Any:
    return load(name, cache_dir=str(hub.root), **{"dtype": "float32", **options})


def timm_patches(weights: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """A vision transformer by timm's names, in plain torch: patches after the last block but one."""
    w = weights
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2) + resample(w["pos_embed"], pixels.shape[-1] // 14)
    prefix = [w[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in w]
    x = torch.cat([*prefix, x], dim=1)
    width = x.shape[-1]
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for i in range(depth - 1):
        b = {
            name.removeprefix(f"blocks.{i}."): value
            for name, value in w.items()
            if name.startswith(f"blocks.{i}.")
        }
        y = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = F.linear(y, b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1) @ v
        y = F.linear(y.transpose(1, 2).flatten(2), b["attn.proj.weight"], b["attn.proj.bias"])
        x = x + b.get("ls1.gamma", 1) * y
        y = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = F.linear(
            F.gelu(F.linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"])),
            b["mlp.fc2.weight"],
            b["mlp.fc2.bias"],
        )
        x = x + b.get("ls2.gamma", 1) * y
    return x[:, 5:] if "cls_token" in w else x


@pytest.mark.parametrize(("name", "prefix"), [("dinov2-vit-l", ""), ("siglip-vit-so400m", "visual.trunk.")])
def test_vision_towers_compute_what_timm_does(name: str, prefix: str) -> None:
    (backbone,) = BACKBONES[name]
    weights = pub.timm_weights(backbone.kind)
    tower = patch_features(backbone, {prefix + key: value for key, value in weights.items()}, "repo")
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), timm_patches(weights, pixels, 16), rtol=1e-4, atol=1e-4)
    lacking = {key: value for key, value in weights.items() if key != "blocks.1.mlp.fc2.bias"}
    with pytest.raises(EngineError, match="repo lacks 1 weights"):
        patch_features(backbone, lacking, "repo")
    with pytest.raises(EngineError, match=r"repo holds 'blocks\.0\.extra\.weight'"):
        patch_features(backbone, weights | {"blocks.0.extra.weight": torch.ones(1)}, "repo")
    with pytest.raises(EngineError, match="timm's layout"):
        patch_features(backbone, {"a": torch.ones(1)}, "repo")


def test_prismatic_puts_the_image_after_the_first_token(hub: Any) -> None:
    pub.write_prismatic(hub)
    loaded = opened(hub, "dinov2-224px+7b")
    weights = pub.prismatic_weights()
    samples = pub.samples("image", 2)
    inputs = loaded.collate(samples, target=True)
    features = timm_patches(pub.timm_weights("dinov2"), inputs.tensors["pixel_values"], 16)
    p = weights["projector"]
    rows = F.linear(
        F.gelu(F.linear(features, p["projector.0.weight"], p["projector.0.bias"])),
        p["projector.2.weight"],
        p["projector.2.bias"],
    )
    with torch.no_grad():
        logits = loaded.forward(inputs).logits
        for i in range(2):
            own = inputs.tensors["input_ids"][i][inputs.attention[i] & (inputs.modality[i] == 1)]
            text = weights["llm_backbone"]["llm.model.embed_tokens.weight"][own]
            embeds = torch.cat([text[:1], rows[i], text[1:]])[None]
            expected = loaded.model.language_model(inputs_embeds=embeds).logits[0]
            torch.testing.assert_close(logits[i][inputs.attention[i]], expected, rtol=1e-3, atol=1e-3)
    assert loaded.model.language_model.config.vocab_size == 64


def test_two_towers_and_a_fused_projector(hub: Any) -> None:
    name = "prism-dinosiglip-224px+7b"
    pub.write_prismatic(hub, name, backbone="dinosiglip-vit-so-224px", strategy="resize-naive")
    loaded = opened(hub, name)
    inputs = loaded.collate(pub.samples("image", 2))
    assert inputs.tensors["pixel_values"].shape == (2, 6, 224, 224)
    checks = trial(loaded, inputs).checks
    assert all(check.passed for check in checks), checks
    with Capturer(loaded, loaded.select(["encoder_output"])) as capture:
        found = capture(inputs)["encoder_output"].x
    for at, kind in ((0, "dinov2"), (1, "siglip")):
        pixels = inputs.tensors["pixel_values"][:, 3 * at : 3 * at + 3]
        expected = timm_patches(pub.timm_weights(kind), pixels, 16)
        torch.testing.assert_close(found[..., 32 * at : 32 * at + 32], expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_with_its_own_vision_weights(hub: Any, tmp_path: Path) -> None:
    tuned = pub.timm_weights("siglip", seed=21)
    own = {f"featurizer.{name}": value for name, value in tuned.items()}
    folder = pub.write_prismatic(
        hub, "x+7b", backbone="siglip-vit-so400m", folder=tmp_path / "run", extra={"vision_backbone": own}
    )
    loaded = opened(hub, folder)
    weight = loaded.model.vision_backbone[0].tower.state_dict()
    name = next(name for name in weight if name.endswith("layers.1.mlp.fc1.weight"))
    assert torch.equal(weight[name], tuned["blocks.1.mlp.fc1.weight"])


def test_prismatic_says_what_it_lacks(hub: Any, tmp_path: Path) -> None:
    folder = pub.write_prismatic(hub, folder=tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("vision_backbone_id", "in1k-vit-l", "vision_backbone_id is 'in1k-vit-l'; known here: dinov2-vit-l"),
        ("llm_backbone_id", "phi-2-3b", "llm_backbone_id is 'phi-2-3b'"),
        ("image_resize_strategy", "tile", "image_resize_strategy 'tile'"),
        ("arch_specifier", "linear", r"of kind linear has \['bias', 'weight'\]"),
    ):
        changed = {"model": {**config["model"], key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(EngineError, match=message):
            opened(hub, folder)
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = folder / "checkpoints" / "latest-checkpoint.pt"
    torch.save({"model": {"projector": {}}}, checkpoint)
    with pytest.raises(EngineError, match="expected projector and llm_backbone"):
        opened(hub, folder)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"cannot read .*latest-checkpoint\.pt"):
        opened(hub, folder)
    checkpoint.unlink()
    with pytest.raises(EngineError, match=r"has no checkpoints/latest-checkpoint\.pt"):
        opened(hub, folder)


class Harmful:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(hub: Any, tmp_path: Path) -> None:
    folder = pub.write_prismatic(hub, folder=tmp_path / "run")
    torch.save({"model": Harmful(tmp_path / "ran")}, folder / "checkpoints" / "latest-checkpoint.pt")
    with pytest.raises(EngineError, match="cannot read"):
        opened(hub, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [(40, 50), (51, 44), (300, 199), (224, 224), (199, 301)])
def test_images_are_made_square(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8))
    mean = (0.5, 0.5, 0.5)
    naive, crop, letter = (
        np.asarray(fit(image, 224, strategy, mean)).astype(int)
        for strategy in ("resize-naive", "resize-crop", "letterbox")
    )
    assert naive.shape == crop.shape == letter.shape == (224, 224, 3)
    if size == (224, 224):
        assert (naive == np.asarray(image)).all()
        assert (crop == naive).all()
        assert (letter == naive).all()
        return
    wide = size[0] > size[1]
    border = letter[0] if wide else letter[:, 0]
    assert (border == 127).all(), "the border has the mean colour"
    corner = crop[:8, :8].mean() - naive[:8, :8].mean()
    assert abs(corner) > 1e-6, "cutting the middle out keeps other pixels than stretching"
    images = PrismaticImages([BACKBONES["dinov2-vit-l"][0]], "resize-naive")
    values = images([image])[0].permute(1, 2, 0) * torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(
        (values + torch.tensor([0.485, 0.456, 0.406])) * 255,
        torch.tensor(naive, dtype=torch.float32),
        atol=1e-3,
        rtol=0,
    )


def test_the_speech_encoder_is_whispers_on_a_full_context() -> None:
    hf = pub.hf
    whisper = pub.drawn(hf.WhisperModel(hf.WhisperConfig(**pub.WHISPER_CONFIG)), 5).encoder
    features = torch.randn(2, 16, 80, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = whisper(features).last_hidden_state
        found = SpeechEncoder(whisper)(features, torch.tensor([80, 80]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [None, 8])
def test_a_samples_frames_do_not_depend_on_its_batch(block: int | None) -> None:
    hf = pub.hf
    whisper = pub.drawn(hf.WhisperModel(hf.WhisperConfig(**pub.WHISPER_CONFIG)), 5).encoder
    encoder = SpeechEncoder(whisper, block)
    lengths = [13, 40, 79, 80, 81, 130]
    features = torch.full((len(lengths), 16, 160), 1e4)  # what padding holds must not matter
    for i, length in enumerate(lengths):
        features[i, :, :length] = torch.randn(16, length, generator=torch.Generator().manual_seed(i))
        features[i, :, length : 160 if length > 80 else length + length % 2] = 0
    clean = torch.stack(
        [F.pad(row[:, :length], (0, 160 - length)) for row, length in zip(features, lengths, strict=True)]
    )
    with torch.no_grad():
        together = encoder(clean, torch.tensor(lengths))
        for i, length in enumerate(lengths):
            width = 160 if length > 80 else length + length % 2
            alone = encoder(clean[i : i + 1, :, :width], torch.tensor([length]))[0]
            frames = (length + 1) // 2
            torch.testing.assert_close(together[i, :frames], alone[:frames], rtol=1e-4, atol=1e-5)
            if length <= 80:
                assert not together[i, frames:].any()


@pytest.mark.parametrize(
    ("middle", "act", "block"), [(True, "swiglu", None), (False, "swiglu", None), (True, "gelu", 8)]
)
def test_ultravox_versions(hub: Any, middle: bool, act: str, block: int | None) -> None:
    made = pub.write_ultravox(hub, norm_in_the_middle=middle, act=act, block=block)
    loaded = opened(hub, "ultravox")
    wave = np.random.default_rng(4).standard_normal(10000).astype(np.float32)
    inputs = loaded.collate([Sample("x", "a man", (wave, 16000))])
    with Capturer(loaded, loaded.select(["encoder_output", "adapter_output"])) as capture:
        found = capture(inputs)
    w = {name.removeprefix("multi_modal_projector."): value for name, value in made["weights"].items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * w[f"{name}.weight"]

    frames = found["encoder_output"].x[0][found["encoder_output"].mask[0]]
    assert len(frames) == 32  # 10,000 samples padded to 63 hops of 160, halved and rounded up
    x = norm(frames.reshape(4, 8 * 32), "ln_pre") @ w["linear_1.weight"].T
    if act == "swiglu":
        x = x[:, :20] * F.silu(x[:, 20:])
    else:
        x = F.gelu(x)
    x = (norm(x, "ln_mid") if middle else x) @ w["linear_2.weight"].T
    x = x if middle else norm(x, "ln_post")
    adapter = found["adapter_output"]
    torch.testing.assert_close(adapter.x[0][adapter.mask[0]], x, rtol=1e-4, atol=1e-5)


def test_ultravox_takes_what_it_lacks_from_the_named_repositories(hub: Any) -> None:
    made = pub.write_ultravox(hub, tower=False)
    loaded = opened(hub, "ultravox")
    whisper = load_file(hub.folder(pub.WHISPER) / "model.safetensors")
    ours = loaded.model.audio_tower.whisper.state_dict()
    assert torch.equal(ours["conv1.weight"], whisper["model.encoder.conv1.weight"])
    llama = load_file(hub.folder(pub.INSTRUCT) / "model.safetensors")
    decoder = loaded.model.language_model.state_dict()
    assert torch.equal(
        decoder["model.layers.1.mlp.up_proj.weight"], llama["model.layers.1.mlp.up_proj.weight"]
    )

    folder = hub.folder(pub.ULTRAVOX)
    tuned = {f"language_model.{name}": value + 1 for name, value in llama.items()}
    save_file(made["weights"] | tuned, folder / "model.safetensors")
    decoder = opened(hub, "ultravox").model.language_model.state_dict()
    assert torch.equal(decoder["lm_head.weight"], llama["lm_head.weight"] + 1)
    save_file(made["weights"] | {"language_model.lora_A.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(EngineError, match="LoRA weights that are not merged"):
        opened(hub, "ultravox")
    del made["weights"]["multi_modal_projector.linear_2.weight"]
    save_file(made["weights"], folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"do not fit its config\.json"):
        opened(hub, "ultravox")


def test_a_part_that_cannot_be_reached_is_named(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pub.write_ultravox(hub)
    weights = hub.folder(pub.INSTRUCT)
    for file in weights.iterdir():
        file.unlink()
    with pytest.raises(EngineError, match=f"cannot reach .*{pub.INSTRUCT}") as caught:
        opened(hub, "ultravox")
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=f"cannot reach .*{pub.PRISMATIC}"):
        opened(hub, "prismatic-siglip")
    with pytest.raises(EngineError, match=r"cannot reach .*meta-llama/Llama-3\.1-8B "):
        opened(hub, "llama")


def test_long_sound_is_heard_whole(hub: Any, recwarn: pytest.WarningsRecorder) -> None:
    pub.write_ultravox(hub)
    loaded = opened(hub, "ultravox")
    rng = np.random.default_rng(5)
    waves = [rng.standard_normal(n).astype(np.float32) for n in (4000, 30000)]  # the context is 12,800
    both = [Sample(f"s{i}", "a man", (wave, 16000)) for i, wave in enumerate(waves)]
    inputs = loaded.collate(both)
    whole, rest = divmod(-(-30000 // 160), 80)
    assert inputs.media_counts == [2, whole * 5 + int(tokens(torch.tensor(rest), 8))]
    assert not [w for w in recwarn if "hears the first" in str(w.message)]
    points = loaded.select(["encoder_output", "adapter_output", "llm_final"])
    with Capturer(loaded, points) as capture:
        together = capture(inputs)
        for i, sample in enumerate(both):
            alone = capture(loaded.collate([sample]))
            for point in points:
                ours, theirs = together[point.name], alone[point.name]
                a, b = ours.x[i][ours.mask[i]], theirs.x[0][theirs.mask[0]]
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    cut = replace(both[1], media=(waves[1][:12800], 16000))
    assert loaded.collate([cut]).media_counts == [5]


REMOTE = """
import torch
import transformers
from torch import nn


class UltravoxConfig(transformers.PretrainedConfig):
    model_type = "ultravox"

    def __init__(self, audio_config=None, text_config=None, **more):
        self.audio_config = transformers.WhisperConfig(**(audio_config or {}))
        self.text_config = transformers.LlamaConfig(**(text_config or {}))
        super().__init__(**more)


class Stack(nn.Module):
    def forward(self, x):
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 8))
        return x.reshape(len(x), -1, 8 * x.shape[2])


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, 32, 3, padding=1)
        self.conv2 = nn.Conv1d(32, 32, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv2(self.conv1(x).relu()).permute(0, 2, 1)


class Projector(nn.Module):
    def __init__(self, width):
        super().__init__()
        self._pad_and_stack = Stack()
        self.linear = nn.Linear(256, width)

    def forward(self, x):
        return self.linear(self._pad_and_stack(x))


class UltravoxModel(transformers.PreTrainedModel):
    config_class = UltravoxConfig
    ran = []

    def __init__(self, config):
        super().__init__(config)
        self.audio_tower = Tower(config.audio_config)
        self.multi_modal_projector = Projector(config.text_config.hidden_size)
        self.language_model = transformers.LlamaForCausalLM(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def get_decoder(self):
        return self.language_model.get_decoder()

    def forward(self, input_ids, audio_values=None, audio_token_start_idx=None, audio_lens=None,
                audio_token_len=None, audio_batch_size=None, **more):
        x = self.get_input_embeddings()(input_ids)
        if audio_values is not None:
            rows = self.multi_modal_projector.forward(self.audio_tower.forward(audio_values))
            at = 0
            for i, count in enumerate(audio_batch_size.tolist()):
                for j in range(at, at + count):
                    start, length = int(audio_token_start_idx[j]), int(audio_token_len[j])
                    x[i, start : start + length] = rows[j, :length]
                at += count
        return self.language_model(inputs_embeds=x, **more)
"""


def test_remote_code_runs_only_when_asked_for(hub: Any, tmp_path: Path) -> None:
    made = pub.write_ultravox(hub)
    assert opened(hub, "ultravox").model.__class__.__name__ == "Ultravox"
    folder = tmp_path / "remote"
    folder.mkdir()
    pub.llama_tokenizer(template=True).save_pretrained(folder)
    (folder / "code.py").write_text(REMOTE)
    config = made["config"] | {
        "auto_map": {"AutoConfig": "code.UltravoxConfig", "AutoModel": "code.UltravoxModel"},
        "text_model_id": None,
        "text_config": {**pub.TEXT, "vocab_size": 260},
    }
    (folder / "config.json").write_text(json.dumps(config))
    llama = load_file(hub.folder(pub.INSTRUCT) / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    parts = {
        "audio_tower.conv1.weight": (32, 16, 3),
        "audio_tower.conv1.bias": (32,),
        "audio_tower.conv2.weight": (32, 32, 3),
        "audio_tower.conv2.bias": (32,),
        "multi_modal_projector.linear.weight": (pub.WIDTH, 256),
        "multi_modal_projector.linear.bias": (pub.WIDTH,),
    }
    weights = {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in parts.items()}
    weights |= {f"language_model.{name}": value for name, value in llama.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = opened(hub, folder, trust_remote_code=True)
    assert type(loaded.model).__name__ == "RemoteUltravox"
    assert type(loaded.model.model).__module__.startswith("transformers_modules")
    rng = np.random.default_rng(6)
    sounds = [rng.standard_normal(n).astype(np.float32) for n in (3000, 5410, 12801, 30000)]
    samples = [Sample(f"s{i}", "a man", (wave, 16000)) for i, wave in enumerate(sounds)]
    inputs = loaded.collate(samples, target=True)
    checks = trial(loaded, inputs).checks
    assert all(check.passed for check in checks), checks
    with torch.no_grad():
        together = loaded.forward(inputs).logits
        for i, sample in enumerate(samples):
            alone = loaded.forward(loaded.collate([sample], target=True)).logits[0]
            torch.testing.assert_close(together[i][inputs.attention[i]], alone, rtol=1e-3, atol=1e-3)
    with Capturer(loaded, loaded.select(["encoder_output"])) as capture:
        block = capture(loaded.collate(samples[:3]))["encoder_output"]
    assert block.mask.sum(dim=1).tolist() == [10, 17, 41]


def test_remote_code_that_does_not_run_names_the_way_out(hub: Any, tmp_path: Path) -> None:
    made = pub.write_ultravox(hub)
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "code.py").write_text(REMOTE + "\nimport transformers.no_such_module\n")
    config = made["config"] | {
        "auto_map": {"AutoConfig": "code.UltravoxConfig", "AutoModel": "code.UltravoxModel"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="leave trust_remote_code out") as caught:
        opened(hub, folder, trust_remote_code=True)
    assert "\n" not in str(caught.value)
