"""One cluster of two worker processes for all tests here, and one store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster_material import importable, make_store

from modegap.engine.cluster import Cluster, connect
from modegap.stores import ActivationStore


@pytest.fixture(scope="session", autouse=True)
def _importable() -> Iterator[None]:
    """Workers inherit this process's environment."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = importable()["PYTHONPATH"]
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def cluster(_importable: None) -> Iterator[Cluster]:
    with connect("local:2") as found:
        yield found


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("store") / "a.zarr")
