"""Numerical operations: torch tensors in and out; no input/output, no models.

Each operation is a folder with its oracle and its paths; `dispatch` says which one ran. Importing this
package imports torch; Triton and CuPy only at the first call with a CUDA tensor.
"""

from __future__ import annotations

from .ablate import ablate
from .absmax import absmax
from .covariance import covariance_update, mirror_lower
from .crc32c import crc32c
from .cross import cross_update
from .dispatch import KernelPath, Mode, last_path, paths, register
from .eigh import eigh
from .ghost_norms import ghost_norms, lora_norms
from .gradient_norms import gradient_norms
from .masked_mean import masked_mean
from .projection_energy import projection_energy
from .rayleigh import rayleigh
from .rotary import rotary
from .stage import exact_up_to, shift_of, stage, stage_and_sum
from .swiglu import swiglu
from .threads import by_rows, one_thread
from .workspace import Workspace

__all__ = [
    "KernelPath",
    "Mode",
    "Workspace",
    "ablate",
    "absmax",
    "by_rows",
    "covariance_update",
    "crc32c",
    "cross_update",
    "eigh",
    "exact_up_to",
    "ghost_norms",
    "gradient_norms",
    "last_path",
    "lora_norms",
    "masked_mean",
    "mirror_lower",
    "one_thread",
    "paths",
    "projection_energy",
    "rayleigh",
    "register",
    "rotary",
    "shift_of",
    "stage",
    "stage_and_sum",
    "swiglu",
]
