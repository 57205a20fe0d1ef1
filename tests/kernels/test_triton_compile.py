"""Every kernel in every shipped configuration compiles for sm_80, sm_86 and sm_90 and fits the chip."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

pytest.importorskip("triton")
pytest.importorskip("triton.backends.nvidia")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from modegap.kernels._triton.compile import Spec, compile_ahead, specs
    from modegap.kernels._triton.config import SHARED_LIMIT, Config, pick

ALL = [(cc, spec) for cc in (80, 86, 90) for spec in specs(cc)]


def compiled(cc: int, spec: Spec) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile_ahead(spec, cc)


def multiplies(ptx: str) -> list[str]:
    """Matrix products and fp32 additions in the order of the code."""
    return re.findall(r"wgmma\.mma_async|wgmma\.wait_group|mma\.sync|add\.f32|add\.rn\.f32", ptx)


@pytest.mark.parametrize(("cc", "spec"), ALL, ids=[f"sm{cc}-{spec.name}" for cc, spec in ALL])
def test_compiles_and_fits(cc: int, spec: Spec) -> None:
    kernel = compiled(cc, spec)
    assert kernel.metadata.shared <= SHARED_LIMIT[cc]
    ptx = kernel.asm["ptx"]
    if "precise" in spec.name or spec.name in ("hopper triangle", "hopper product"):
        # Promotion is one fp32 addition an accumulator element, outside the chain of products. Two halves of
        # 128 x 128 over 256 threads: 64 each, in Triton's loop and in each group of warps on Hopper.
        assert ptx.count("wgmma.mma_async" if cc == 90 else "mma.sync") >= 8
        assert len(re.findall(r"add(?:\.rn)?\.f32", ptx)) >= 128
    if spec.name.endswith("fast"):
        assert not re.search(r"add(?:\.rn)?\.f32", ptx)
    if spec.gluon:
        assert "cp.async.bulk.tensor" in ptx
        assert "setmaxnreg" in ptx
        assert "wgmma.mma_async" in ptx


def test_promotion_interrupts_the_chain() -> None:
    """In the Hopper kernel: eight products, a wait, 64 additions, and so on; never more than eight."""
    spec = next(spec for spec in specs(90) if spec.name == "hopper triangle")
    code = " ".join(multiplies(compiled(90, spec).asm["ptx"]))
    runs = [len(run.split()) for run in re.findall(r"(?:wgmma\.mma_async ?)+", code)]
    assert len(runs) >= 4
    assert max(runs) <= 8


def test_configuration_of_an_unknown_architecture() -> None:
    import torch

    table = {80: Config({"BT": 1}), 90: Config({"BT": 2}, registers=128)}
    assert pick(table, torch.device("cpu")).launch == {
        "BT": 2,
        "num_warps": 4,
        "num_stages": 3,
        "maxnreg": 128,
    }
    with pytest.raises(ValueError, match=r"compute capability 9\.5"):
        pick({95: Config()}, torch.device("cpu"))
