"""`modegap distance MODAL TEXT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.distance.config import DistanceConfig

from .clustering import ClusterOptions, workers

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.distance import DistanceResult


@dataclass(frozen=True, slots=True)
class Stores:
    """Which stores, and where the result goes.

    Attributes:
        modal: store of the model fed with media.
        text: store of the decoder fed with text.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        device: where rows are reduced, for example `cuda`; the host unless given.
    """

    modal: str
    text: str
    out: str | None = None
    device: str | None = None


CONFIGS = (Stores, DistanceConfig, ClusterOptions)


def run(stores: Stores, config: DistanceConfig, options: ClusterOptions, console: Console) -> DistanceResult:
    """Distances between the modal and the text law along the hook points."""
    from modegap.analyses.distance import distance
    from modegap.analyses.saved import save_result

    with workers(options, stores.out, console) as cluster:
        with console.progress("distance") as advance:
            result = distance(
                stores.modal, stores.text, config, device=stores.device, progress=advance, cluster=cluster
            )
        if stores.out is not None:
            save_result(result, stores.out)
            console.say(f"distances: {stores.out}")
    return result
