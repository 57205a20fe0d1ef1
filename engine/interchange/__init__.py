"""Stores from and to the files that other tools use: HDF5, npy, npz, safetensors, raw memory maps.

Arrays are [rows, width], one a hook point, named after it. Token rows come with an int64 array
`<point>.length` that holds the rows of each sample; without one, a row is a sample. What arrays cannot hold
(sample ids, labels, provenance) is in a JSON file beside them, which may be missing.
"""

from __future__ import annotations

from .exporting import export_store
from .formats import FORMATS, Format, format_of
from .importing import import_store

__all__ = ["FORMATS", "Format", "export_store", "format_of", "import_store"]
