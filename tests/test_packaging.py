"""The layout: everything installs under one import name, and importing it stays cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import modegap

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "stores", "engine", "analyses")


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_the_root_folder(layer: str) -> None:
    link = ROOT / "src" / "modegap" / layer
    assert link.is_symlink(), "a checkout without symbolic links builds a near-empty wheel"
    package = importlib.import_module(f"modegap.{layer}")
    assert package.__file__ is not None
    assert Path(package.__file__).resolve().parent == ROOT / layer


def test_no_import_works_only_inside_a_checkout() -> None:
    # ruff's banned-api cannot say this: it takes `from .config` in `engine/` for `engine.config`
    for folder in (*LAYERS, "src", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                wrong = [name for name in names if name.partition(".")[0] in LAYERS]
                assert not wrong, f"{path}:{node.lineno} imports {wrong[0]}: import modegap.{wrong[0]}"


def test_every_public_name_resolves() -> None:
    assert list(modegap.__all__) == sorted(modegap.__all__)
    for name in modegap.__all__:
        assert getattr(modegap, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        modegap.no_such_name  # noqa: B018


def test_import_is_cheap() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import modegap; s = time.perf_counter() - t; "
        "heavy = {'torch', 'triton', 'cupy', 'dask', 'transformers', 'zarr', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; assert s < 1.0, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_copy_of_the_kernels_takes_nothing_over() -> None:
    """transformers imports a package called `kernels` where there is one, as in a checkout's root."""
    code = (
        "import modegap.kernels.dispatch as d, modegap.kernels; before = {k: list(v) for k, v in d._registry.items()}; "
        "import kernels; assert kernels.ablate is not modegap.kernels.ablate; assert d._registry == before and before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_wheel_and_sdist_hold_every_file(archives: tuple[Path, Path]) -> None:
    wheel, sdist = archives
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as tar:
        source = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*"):
            if (
                path.is_file() and "__pycache__" not in path.parts
            ):  # modules and data: weights, templates, YAML
                name = path.relative_to(ROOT).as_posix()
                assert f"modegap/{name}" in inside
                assert f"src/modegap/{name}" in source
    assert "modegap/py.typed" in inside


def test_wheel_works_alone(archives: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(archives[0]).extractall(tmp_path)
    code = "import modegap; print(modegap.__file__); [getattr(modegap, n) for n in modegap.__all__]"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
