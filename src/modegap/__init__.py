"""modegap: a chunked fp16 Zarr activation store and streaming analytics engine for multimodal LLMs.

    import modegap as mg

    model, processor = mg.load("llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto")
    modes = mg.align(mg.open("llava.zarr"), text=mg.open("vicuna.zarr"))

Every name below is loaded on first use: importing the package imports no torch, triton, cupy or dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from modegap._version import __version__

if TYPE_CHECKING:
    from modegap._facade import cluster, dataset, load, open
    from modegap.analyses.ablate import ablate
    from modegap.analyses.align import Modes, align
    from modegap.analyses.bound import bound
    from modegap.analyses.compare import beside_published, encoders, pooling
    from modegap.analyses.distance import distance
    from modegap.analyses.gmi import gmi
    from modegap.analyses.gradproj import gradients, gradproj
    from modegap.analyses.lipschitz import lipschitz
    from modegap.analyses.lora import lora
    from modegap.analyses.pertype import pertype
    from modegap.analyses.probe import probe
    from modegap.analyses.report import write_report
    from modegap.analyses.study import load_study
    from modegap.analyses.swap import swap
    from modegap.engine.batch import ActivationBatch
    from modegap.engine.capture import ExtractConfig, extract, extract_moments, record
    from modegap.engine.datasets import Sample, batches
    from modegap.engine.models import adopt
    from modegap.engine.moments import ClassMoments, CrossMoments, Moments, ProjectionEnergy
    from modegap.engine.reduce import reduce, reduce_pairs
    from modegap.engine.reduction import Reduction
    from modegap.engine.reduction_checks import check_reduction
    from modegap.engine.stream import stream, stream_pairs
    from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan, verify

_HOME = {
    "ActivationBatch": "modegap.engine.batch",
    "ActivationStore": "modegap.stores",
    "ClassMoments": "modegap.engine.moments",
    "CrossMoments": "modegap.engine.moments",
    "ExtractConfig": "modegap.engine.capture",
    "Modes": "modegap.analyses.align",
    "Moments": "modegap.engine.moments",
    "PointPlan": "modegap.stores",
    "ProjectionEnergy": "modegap.engine.moments",
    "Reduction": "modegap.engine.reduction",
    "Sample": "modegap.engine.datasets",
    "SampleRows": "modegap.stores",
    "StorePlan": "modegap.stores",
    "ablate": "modegap.analyses.ablate",
    "adopt": "modegap.engine.models",
    "align": "modegap.analyses.align",
    "batches": "modegap.engine.datasets",
    "beside_published": "modegap.analyses.compare",
    "bound": "modegap.analyses.bound",
    "check_reduction": "modegap.engine.reduction_checks",
    "cluster": "modegap._facade",
    "dataset": "modegap._facade",
    "distance": "modegap.analyses.distance",
    "encoders": "modegap.analyses.compare",
    "extract": "modegap.engine.capture",
    "extract_moments": "modegap.engine.capture",
    "gmi": "modegap.analyses.gmi",
    "gradients": "modegap.analyses.gradproj",
    "gradproj": "modegap.analyses.gradproj",
    "lipschitz": "modegap.analyses.lipschitz",
    "load": "modegap._facade",
    "load_study": "modegap.analyses.study",
    "lora": "modegap.analyses.lora",
    "open": "modegap._facade",
    "pertype": "modegap.analyses.pertype",
    "pooling": "modegap.analyses.compare",
    "probe": "modegap.analyses.probe",
    "record": "modegap.engine.capture",
    "reduce": "modegap.engine.reduce",
    "reduce_pairs": "modegap.engine.reduce",
    "stream": "modegap.engine.stream",
    "stream_pairs": "modegap.engine.stream",
    "swap": "modegap.analyses.swap",
    "verify": "modegap.stores",
    "write_report": "modegap.analyses.report",
}

__all__ = [
    "ActivationBatch",
    "ActivationStore",
    "ClassMoments",
    "CrossMoments",
    "ExtractConfig",
    "Modes",
    "Moments",
    "PointPlan",
    "ProjectionEnergy",
    "Reduction",
    "Sample",
    "SampleRows",
    "StorePlan",
    "__version__",
    "ablate",
    "adopt",
    "align",
    "batches",
    "beside_published",
    "bound",
    "check_reduction",
    "cluster",
    "dataset",
    "distance",
    "encoders",
    "extract",
    "extract_moments",
    "gmi",
    "gradients",
    "gradproj",
    "lipschitz",
    "load",
    "load_study",
    "lora",
    "open",
    "pertype",
    "pooling",
    "probe",
    "record",
    "reduce",
    "reduce_pairs",
    "stream",
    "stream_pairs",
    "swap",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'modegap' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
