"""A run that goes on with other weights in the same folder must not mix the rows of two models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modegap as mg
from modegap.cli import main
from modegap.engine.models.weights import weights_digest
from modegap.stores import ActivationStore


def test_a_folder_whose_weights_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = mg.load("lab:text")
    folder, store = tmp_path / "model", tmp_path / "s.zarr"
    model.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = tmp_path / "t.csv"
    table.write_text("text\n" + "".join(f"row {i} of the table\n" for i in range(150)))
    command = [
        "extract",
        str(folder),
        str(table),
        str(store),
        "--points",
        "llm_final",
        "--rows",
        "pooled",
        "--quiet",
    ]
    assert main(command) == 0
    before = ActivationStore.open(store).content_hash()
    record = store / "_commit" / "pooled" / "llm_final" / "rows" / "1.json"
    record.unlink()
    assert main(command) == 0
    assert ActivationStore.open(store).content_hash() == before
    record.unlink()
    file = folder / "model.safetensors"
    save_file({name: 1.5 * value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert main(command) == 1
    assert "provenance.weights is 'sha256:" in capsys.readouterr().err
    assert not record.exists()


def test_the_digest(tmp_path: Path) -> None:
    assert weights_digest("org/model") is None
    assert weights_digest(str(tmp_path)) is None
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((512, 4096)).astype(np.float32))
    file = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"w": values}, file)
    first = weights_digest(str(tmp_path))
    assert first == weights_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("text")
    assert weights_digest(str(tmp_path)) == first
    content = bytearray(file.read_bytes())
    for at in (0, len(content) - 1):
        content[at] ^= 1
        file.write_bytes(content)
        assert weights_digest(str(tmp_path)) != first
        content[at] ^= 1
    file.write_bytes(content)
    assert weights_digest(str(tmp_path)) == first
    file.rename(tmp_path / "other.bin")
    assert weights_digest(str(tmp_path)) != first
