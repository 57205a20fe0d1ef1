"""What `modegap inspect` shows of a model, with and without its weights."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modegap.cli import main
from modegap.engine.errors import EngineError
from modegap.engine.models import adopt, outline, skeleton, trial
from modegap.engine.models.trial import example

pub = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("families.py"))))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = pub.Hub(tmp_path_factory.mktemp("hub"))
    pub.write_llava(hub)
    return hub.folder(pub.LLAVA)


def test_a_skeleton_has_the_models_hook_points_and_none_of_its_weights(llava: Path) -> None:
    weights = llava / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    try:
        loaded = skeleton(llava)
    finally:
        weights.write_bytes(content)
    assert all(weight.device.type == "meta" for weight in loaded.model.parameters())
    from modegap.engine.models import load

    whole = load(llava, dtype="float32")
    assert loaded.points == whole.points
    assert (loaded.modality, loaded.hidden_size, loaded.family) == ("image", pub.WIDTH, "llava")
    assert loaded.replay == whole.replay
    with pytest.raises(EngineError, match="no model folder"):
        skeleton(llava / "nothing")


def test_the_outline_names_every_hook_point_once_and_folds_layers(llava: Path) -> None:
    loaded = skeleton(llava)
    branches = outline(loaded, depth=1)
    shown = [point for branch in branches for point in branch.points]
    assert {"encoder_output:input", "adapter_output", "text_embedding", "llm_final"} <= set(shown)
    assert len(shown) == len(set(shown))
    paths = [branch.path for branch in branches]
    assert len(paths) == len(set(paths))
    layers = next(branch for branch in branches if branch.path.endswith("layers.0 to .2"))
    assert layers.kind == "LlamaDecoderLayer"
    assert layers.note == "3 layers of this class"
    notes = {branch.note.partition(":")[0] for branch in branches}
    assert {"encoder", "decoder", "adapter", "embedding", "norm"} <= notes
    top = [branch for branch in branches if branch.depth == 0]
    assert sum(branch.parameters for branch in top) == sum(w.numel() for w in loaded.model.parameters())
    deeper = outline(loaded, depth=9)
    assert len(deeper) > len(branches)
    assert any(branch.path.endswith("self_attn.q_proj") for branch in deeper) is False, "layers are folded"
    with pytest.raises(ValueError, match="depth 0"):
        outline(loaded, depth=0)


def test_a_trial_finds_a_point_that_is_not_what_it_claims() -> None:
    torch.manual_seed(0)
    model, tensors = made.FAMILIES["paligemma"].make()
    processor = made.processor("image")
    right = adopt(model.eval(), processor, name="right")
    inputs = right.place(right.collator.wrap(tensors, ["a", "b"]))
    by_name = {check.name.split()[0]: check for check in trial(right, inputs).checks}
    assert by_name["adapter_output"].passed
    assert by_name["replay"].passed is None
    assert "both directions" in by_name["replay"].found

    layers = right.structure.layers
    points = {"llm_hidden_1": f"{layers}.1", "adapter_output": f"{right.structure.adapter}:input"}
    wrong = adopt(model, processor, points=points)
    by_name = {check.name.split()[0]: check for check in trial(wrong, inputs).checks}
    assert by_name["llm_hidden_<k>"].passed is False
    assert by_name["llm_hidden_<k>"].found == "differ at [1]"
    assert by_name["adapter_output"].passed is False


def test_examples_are_of_each_kind() -> None:
    assert example("image").media.size == (96, 64)
    assert example("audio").media[0].shape == (16000,)
    assert example("text").media is None


def test_the_command_prints_tree_points_and_reasons(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(llava), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "llava"
    assert {row["point"] for row in found["points"]} >= {"adapter_output", "llm_final"}
    assert all(row["why"] for row in found["points"])
    assert found["replay"]["unsupported"] is None
    assert any("adapter" in branch["note"] for branch in found["tree"])
    assert "trial" not in found
    assert main(["inspect", str(llava), "--run", "true", "--json"]) == 0
    tried = json.loads(capsys.readouterr().out)["trial"]
    assert tried["shapes"]["adapter_output"] == [1, 4, pub.WIDTH]
    assert all(check["passed"] for check in tried["checks"])
    assert main(["inspect", str(llava)]) == 0
    text = capsys.readouterr().out
    assert "multi_modal_projector" in text
    assert "puts out the decoder's" in text


def test_the_command_fails_where_a_point_is_wrong(llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = skeleton(llava).structure.layers
    wrong = json.dumps({"llm_hidden_1": f"{layers}.1"})
    assert main(["inspect", str(llava), "--run", "true", "--module", wrong, "--json"]) == 1
    assert "differ at [1]" in capsys.readouterr().out
    assert main(["inspect", str(llava), "--depth", "0"]) in (1, 2)
