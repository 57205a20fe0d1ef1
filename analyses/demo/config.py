"""Options of the demo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """The main job on the lab.

    Attributes:
        out: folder of the stores, the results and the report; what is there already is reused.
        samples: images captured for each variant; 360 held-out scans, then further looks at the same scans.
        ablate_samples: images whose captions are scored under each ablation.
        batch_size: samples a forward.

    Raises:
        ValueError: an option out of its range.
    """

    out: str = "modegap-demo"
    samples: int = 1440
    ablate_samples: int = 360
    batch_size: int = 60

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in (("samples", 60), ("ablate_samples", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
