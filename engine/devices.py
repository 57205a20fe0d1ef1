"""The device that a user names."""

from __future__ import annotations

import torch


def named(device: str | torch.device | None) -> torch.device:
    """The device of that name; None is the host.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        return torch.device("cpu" if device is None else device)
    except RuntimeError:
        raise ValueError(
            f"device: got {device!r}, expected 'cpu' or an NVIDIA GPU such as 'cuda' or 'cuda:1'"
        ) from None
