from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from store_material import small_sizes


@pytest.fixture(autouse=True)
def _no_sync(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a process does not lose what it wrote, so only the test of the sync order pays for syncing."""
    if "syncs" not in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def syncs() -> None:
    """Ask for real syncs."""


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    small_sizes(monkeypatch.setattr)
