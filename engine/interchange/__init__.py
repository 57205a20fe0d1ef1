"""Stores from and to the files that other tools use: HDF5, npy, npz, safetensors, raw memory maps, `datasets`.

Arrays are [rows, width], one a hook point, named after it. Token rows come with an int64 array
`<point>.length` that holds the rows of each sample, and may come with `<point>.ids` and `<point>.modality`,
what stood at each; without lengths, a row is a sample. Pooled rows of a point that also has token rows are
`<point>.pooled`. What arrays cannot hold (sample ids, labels, streams, provenance) is in a JSON file beside
them, which may be missing.
"""

from __future__ import annotations

from .exporting import export_store
from .formats import FORMATS, SOURCES, Format, Source, format_of, source_of
from .importing import import_dataset, import_store
from .tables import as_dataset

__all__ = [
    "FORMATS",
    "SOURCES",
    "Format",
    "Source",
    "as_dataset",
    "export_store",
    "format_of",
    "import_dataset",
    "import_store",
    "source_of",
]
