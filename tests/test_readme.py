"""The README's example runs as printed (on fewer samples), and its pictures and links are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = code.replace("size=720", "size=120").replace("random*20", "random*2")
    assert small != code
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), names)
    assert "adapter_output" in capsys.readouterr().out
    assert (tmp_path / "modal.zarr").is_dir()


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
