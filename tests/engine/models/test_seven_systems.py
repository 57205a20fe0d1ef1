"""The seven systems of the paper from their published layouts, as the real architectures at small size."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modegap.analyses.align import align
from modegap.engine.capture import Capturer, ExtractConfig, extract
from modegap.engine.datasets import ListDataset
from modegap.engine.models import SYSTEMS, LoadedModel, load, target_nll, trial
from modegap.engine.moments import Moments
from modegap.engine.reduce import reduce

pub = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
MEDIA = [name for name, kind in pub.KINDS.items() if kind != "text"]
QUESTION = {
    "ultravox": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|audio|><|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2-audio": "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nDescribe this audio.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llava": "<image>\nDescribe this image.",
    "prismatic-dinov2": "<image>A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: Describe this image. ASSISTANT:",
}
QUESTION["prismatic-siglip"] = QUESTION["prismatic-dinov2"]
PLACEHOLDER = dict.fromkeys(MEDIA, "<image>") | {"ultravox": "<|audio|>", "qwen2-audio": "<|AUDIO|>"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loads a system by its short name from a Hub cache that was written for it, once."""
    root = tmp_path_factory.mktemp("hub")
    found: dict[str, LoadedModel] = {}

    def open_system(name: str) -> LoadedModel:
        if name not in found:
            cache = root / name
            pub.WRITERS[name](pub.Hub(cache))
            found[name] = load(name, dtype="float32", cache_dir=str(cache))
        return found[name]

    return open_system


@pytest.mark.parametrize("name", pub.WRITERS)
def test_hook_points_and_replay_hold_on_a_batch(name: str, opened: Any) -> None:
    loaded = opened(name)
    assert loaded.name == SYSTEMS[name]
    assert loaded.modality == pub.KINDS[name]
    assert loaded.hidden_size == pub.WIDTH
    inputs = loaded.collate(pub.samples(pub.KINDS[name], 4), target=True)
    tried = trial(loaded, inputs)
    checks = {check.name.split()[0]: check for check in tried.checks}
    assert checks["every"].passed
    assert checks["llm_hidden_<k>"].passed, checks
    assert checks["adapter_output"].passed is (True if loaded.modality != "text" else None), checks
    if loaded.modality != "text":
        assert checks["replay"].passed, checks


@pytest.mark.parametrize("name", MEDIA)
def test_prompts_spans_and_targets(name: str, opened: Any) -> None:
    loaded = opened(name)
    samples = pub.samples(pub.KINDS[name], 4)
    inputs = loaded.collate(samples, target=True)
    assert loaded.collator.question(None) == QUESTION[name]
    tokenizer, token = loaded.collator.tokenizer, loaded.collator.media_token
    without = QUESTION[name].replace(PLACEHOLDER[name], "")
    for i, sample in enumerate(samples):
        own = inputs.tensors["input_ids"][i][inputs.attention[i]]
        target = inputs.target_mask[i][inputs.attention[i]]
        ((start, stop),) = inputs.spans[i]
        assert stop - start == inputs.media_counts[i] > 0
        assert (own[start:stop] == token).all()
        assert tokenizer.decode(own[target]).strip() == sample.text
        asked = own[~target]
        assert tokenizer.decode(asked[asked != token]).removeprefix("<s>").strip() == without.strip()


@pytest.mark.filterwarnings("ignore:.* rows for 48 dimensions")
@pytest.mark.parametrize("name", MEDIA)
def test_captured_aligned_and_scored(name: str, opened: Any, tmp_path: Path) -> None:
    loaded = opened(name)
    data = ListDataset(pub.samples(pub.KINDS[name], 8), name="small")
    points = ("encoder_output", "adapter_output", "llm_hidden_2", "llm_final")
    config = ExtractConfig(name, "small", str(tmp_path / "modal.zarr"), points, batch_size=3)
    modal = extract(config, model=loaded, data=data)
    text_points = ("text_embedding", "llm_final")
    config = ExtractConfig(
        name, "small", str(tmp_path / "text.zarr"), text_points, batch_size=3, as_text=True
    )
    text = extract(config, model=loaded, data=data)
    with Capturer(loaded, loaded.select(["adapter_output"])) as capture:
        rows = [capture(loaded.collate([sample]))["adapter_output"] for sample in data]
    singly = torch.cat([block.x[0][block.mask[0].to(block.x.device)] for block in rows])
    stored = reduce(modal, "adapter_output", Moments())
    assert stored.count == len(singly)
    torch.testing.assert_close(
        torch.as_tensor(stored.mean), singly.double().mean(dim=0), rtol=2e-3, atol=2e-3
    )
    modes = align(modal, text=text)
    assert len(modes.rho) > 5
    assert (modes.eigenvalues[:5] > 0).all()
    nll = target_nll(loaded, data, batch_size=3)
    assert nll.shape == (8,)
    assert (nll > 0).all()


@pytest.mark.parametrize("name", ["llama", "vicuna"])
def test_text_baselines_read_the_raw_text(name: str, opened: Any) -> None:
    loaded = opened(name)
    sample = pub.samples("image", 1)[0]
    inputs = loaded.collate([sample])
    ids = inputs.tensors["input_ids"][0].tolist()
    tokenizer = loaded.collator.tokenizer
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]).strip() == sample.text
    assert inputs.spans == [[]]
    assert loaded.replay.token is None
    embeds = loaded.replay.inputs_embeds(loaded, inputs.tensors["input_ids"], None)
    assert torch.equal(embeds, loaded.model.get_input_embeddings()(inputs.tensors["input_ids"]))
