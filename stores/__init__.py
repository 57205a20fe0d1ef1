"""The activation store: a versioned Zarr v3 layout, a writer that survives being killed, a checked reader."""

from .buffers import aligned_empty
from .commits import CommitRecord
from .damage import Damage
from .errors import DamagedChunkError, NotCommittedError, StoreBusyError, StoreError
from .labels import LabelColumn
from .layout import SCHEMA_VERSION
from .metadata import restore_header
from .origin import provenance
from .plan import PointInfo, PointPlan, StorePlan
from .reading import Extent
from .repairing import RepairReport, repair
from .rows import RowArray
from .store import ActivationStore
from .summary import ArrayInfo, LabelInfo, StoreInfo, info
from .verification import VerifyReport, verify
from .writer import SampleRows, Writer

__all__ = [
    "SCHEMA_VERSION",
    "ActivationStore",
    "ArrayInfo",
    "CommitRecord",
    "Damage",
    "DamagedChunkError",
    "Extent",
    "LabelColumn",
    "LabelInfo",
    "NotCommittedError",
    "PointInfo",
    "PointPlan",
    "RepairReport",
    "RowArray",
    "SampleRows",
    "StoreBusyError",
    "StoreError",
    "StoreInfo",
    "StorePlan",
    "VerifyReport",
    "Writer",
    "aligned_empty",
    "info",
    "provenance",
    "repair",
    "restore_header",
    "verify",
]
