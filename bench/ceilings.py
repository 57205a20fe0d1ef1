"""What the machine reaches at its best, measured in the run whose results are held against it."""

from __future__ import annotations

import statistics

import torch

from .harness import Call, Device, measure, measure_host


def ceilings(device: Device) -> dict[str, float]:
    """Copy bandwidth in bytes/s (read + write) and product rates in flop/s."""
    return _gpu() if device == "cuda" else _host()


def _gpu() -> dict[str, float]:
    blocks = [torch.randn(2**28, device="cuda").half() for _ in range(2)]
    target = torch.empty_like(blocks[0])
    a, b = torch.randn(8192, 8192, device="cuda").half(), torch.randn(8192, 8192, device="cuda").half()
    c, e = torch.randn(4096, 4096, device="cuda").double(), torch.randn(4096, 4096, device="cuda").double()
    calls: dict[str, list[Call]] = {
        "copy": [lambda x=x: target.copy_(x) for x in blocks],
        "fp16": [lambda: a @ b],
        "fp64": [lambda: c @ e],
    }
    took = {name: statistics.median(t) / 1e3 for name, t in measure(calls, 12).items()}
    return {
        "copy": 4 * 2.0**28 / took["copy"],
        "fp16": 2 * 8192.0**3 / took["fp16"],
        "fp64": 2 * 4096.0**3 / took["fp64"],
    }


def _host(n: int = 2048) -> dict[str, float]:
    """The best of what is at hand: libraries differ twofold (kernels/host.py), and ours may use any.

    In fp32 also 64 cache-sized products in threads: oneDNN's own threads reach less on one large product.
    """
    from modegap.kernels.host import onednn_refusal, product
    from modegap.kernels.threads import parallel

    source = torch.randn(2**25)  # 128 MiB: beyond any cache that two cores have to themselves
    target = torch.empty_like(source)
    a, b = torch.randn(n, n), torch.randn(n, n)
    c, e = a.double(), b.double()
    side = n // 4
    left, right = torch.randn(side, side), torch.randn(side, side)
    calls: dict[str, list[Call]] = {
        "copy": [lambda: target.copy_(source)],
        "fp32 torch": [lambda: a @ b],
        "fp32 numpy": [lambda: a.numpy() @ b.numpy()],
        "fp64 torch": [lambda: c @ e],
        "fp64 numpy": [lambda: c.numpy() @ e.numpy()],
    }
    if not onednn_refusal():
        calls["fp32 onednn"] = [lambda: product(a, b)]
        calls["fp32 tiles"] = [lambda: parallel(lambda _: product(left, right), range(64))]
    for repeated in calls.values():
        repeated[0]()
    took = {name: min(t) / 1e3 for name, t in measure_host(calls, 7).items()}
    best = {rate: min(t for name, t in took.items() if name.startswith(rate)) for rate in ("fp32", "fp64")}
    return {"copy": 8 * 2.0**25 / took["copy"], **{rate: 2.0 * n**3 / t for rate, t in best.items()}}
