"""The benchmark of reading ahead: its gate, and that it measures what it says."""

from __future__ import annotations

import pytest


def test_a_small_run() -> None:
    pytest.importorskip("fsspec")
    from bench import remote_latency

    found = remote_latency.run(24, 0.02, "sharded", rounds=1)
    assert found["requests_at_once"]["one after another"] == 1
    assert found["requests_at_once"]["read ahead"] > 4
    assert found["seconds"]["one after another"] > 24 * 0.02
    assert found["speedup"]["read ahead"] > 1.5
