"""Other libraries as providers: each function returns calls by name and, for what is missing, the reason.

Peers are imported here and nowhere else in bench/, so that a machine without one still measures the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from .harness import Call

Peers = tuple[dict[str, list[Call]], dict[str, str]]
IPCA_WIDTH = 1024
"""IncrementalPCA takes an SVD of [batch, d] for each batch, dask-ml's PCA one of everything: minutes beyond this
width on two cores."""


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def covariance(inputs: Sequence[torch.Tensor]) -> Peers:
    """Covariance (ddof 1) of fp16 host rows by scikit-learn, dask and dask-ml, in fp64 as they choose it.

    dask-ml has no covariance of its own; its PCA gives one, from an SVD of all rows by blocks.
    """
    calls: dict[str, list[Call]] = {}
    missing: dict[str, str] = {}
    arrays = [x.numpy() for x in inputs]
    width = arrays[0].shape[1]
    name = "scikit-learn IncrementalPCA"
    sklearn = _module("sklearn.decomposition")
    if sklearn is None:
        missing[name] = "scikit-learn is not installed"
    elif width > IPCA_WIDTH:
        missing[name] = f"its SVD of every batch takes minutes at width {width}"
    else:
        # All components and batches of at least as many rows: only then is its covariance exact.
        calls[name] = [
            lambda x=x: sklearn.IncrementalPCA(batch_size=max(width, 1024)).fit(x).get_covariance()
            for x in arrays
        ]
    name = "dask.array.cov"
    dask = _module("dask.array")
    if dask is None:
        missing[name] = "dask[array] is not installed"
    else:
        calls[name] = [
            lambda x=x: dask.cov(dask.from_array(x, chunks=(2048, -1)), rowvar=False).compute(
                scheduler="threads"
            )
            for x in arrays
        ]
    name = "dask-ml PCA (tsqr)"
    dask_ml = _module("dask_ml.decomposition")
    if dask is None or dask_ml is None:
        missing[name] = "dask-ml is not installed"
    elif width > IPCA_WIDTH:
        missing[name] = f"its SVD of all rows takes minutes at width {width}"
    else:
        calls[name] = [lambda x=x: _dask_ml_covariance(dask, dask_ml, x) for x in arrays]
    return calls, missing


def _dask_ml_covariance(dask: ModuleType, dask_ml: ModuleType, x: np.ndarray) -> np.ndarray:
    rows = dask.from_array(x, chunks=(2048, -1)).astype(np.float64)
    found: np.ndarray = dask_ml.PCA(n_components=x.shape[1], svd_solver="tsqr").fit(rows).get_covariance()
    return found


def gpu_covariance(inputs: Sequence[torch.Tensor]) -> Peers:
    """n times the covariance (ddof 0) of fp16 GPU rows by CuPy in fp32, as a tuple like torch.cov's."""
    name = "cupy.cov(x.astype(float32)) * n"
    cupy = _module("cupy")
    if cupy is None:
        return {}, {name: "CuPy is not installed"}

    def call(x: torch.Tensor) -> tuple[torch.Tensor]:
        rows = cupy.from_dlpack(x).astype(cupy.float32)
        found = cupy.cov(rows, rowvar=False, bias=True, dtype=cupy.float32)
        return (torch.from_dlpack(found * np.float32(len(x))),)

    return {name: [lambda x=x: call(x) for x in inputs]}, {}


def ghost(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], dtypes: Sequence[torch.dtype] = (torch.float32,)
) -> Peers:
    """Per-sample norms of a linear weight's gradient by Opacus' ghost clipping and by torch.func.

    Opacus keeps its Gram matrices in the dtype of the gradients; it gets them in each of `dtypes`.
    """
    calls: dict[str, list[Call]] = {
        "torch.func vmap(grad)": [lambda a=a, g=g: _vmap_norms(a, g) for a, g in pairs]
    }
    opacus = _module("opacus.grad_sample.linear")
    if opacus is None:
        return calls, dict.fromkeys(map(opacus_in, dtypes), "opacus is not installed")
    for dtype in dtypes:
        calls[opacus_in(dtype)] = [_opacus(opacus, a.to(dtype), g.to(dtype)) for a, g in pairs]
    return calls, {}


def opacus_in(dtype: torch.dtype) -> str:
    """Opacus' name as a provider."""
    return f"Opacus ghost norms, {str(dtype).removeprefix('torch.')}"


def _opacus(opacus: ModuleType, a: torch.Tensor, g: torch.Tensor) -> Call:
    layer = torch.nn.Linear(a.shape[-1], g.shape[-1], bias=False, device=a.device, dtype=a.dtype)
    return lambda: opacus.compute_linear_norm_sample(layer, [a], g)[layer.weight]


def _vmap_norms(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Norms of per-sample gradients formed by vmap: the loss of sample b is sum_t g_bt' W a_bt."""

    def loss(weight: torch.Tensor, inputs: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.linear(inputs, weight) * backward).sum()

    weight = a.new_zeros(g.shape[-1], a.shape[-1])
    formed = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weight, a, g)
    return torch.linalg.vector_norm(formed.flatten(1), dim=1, dtype=torch.float32)


LIGER = "liger-kernel"


def swiglu() -> tuple[dict[str, Callable[..., torch.Tensor]], dict[str, str]]:
    """silu(gate) * up by liger-kernel, whose backward writes over its operands."""
    ops = _module("liger_kernel.ops.swiglu")
    if ops is None:
        return {}, {LIGER: "liger-kernel is not installed"}
    return {LIGER: ops.LigerSiLUMulFunction.apply}, {}


def rotary() -> tuple[dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]], dict[str, str]]:
    """Rotary embedding of q and k by liger-kernel, which writes over them and over their gradients."""
    ops = _module("liger_kernel.ops.rope")
    if ops is None:
        return {}, {LIGER: "liger-kernel is not installed"}
    return {LIGER: ops.LigerRopeFunction.apply}, {}
