"""What `extract` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["tokens", "pooled", "both"]


@dataclass(frozen=True, slots=True)
class ExtractConfig:
    """One capture run; a YAML file or the flags of `modegap extract` fill it.

    Attributes:
        model: Hub id or folder.
        dataset: folder, CSV or JSONL file, or text file.
        store: folder of the store to write.
        points: hook points, names or globs (`llm_hidden_*`).
        rows: every token row, one mean row a sample, or both.
        batch_size: samples a forward; halved where memory runs out.
        dtype: dtype of the model; the checkpoint's own unless given.
        store_dtype: dtype of the rows; fp16 is scaled by powers of two where it would overflow.
        limit: only the first so many samples.
        prompt: instead of the family's default prompt.
        target: let the decoder also read each sample's text after the prompt.
        as_text: feed the texts of a media data set instead of its media (the text law of the same samples).
        resume: go on with a store of the same plan; otherwise an existing store is an error.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
        module: hook points of your own, name to `module.path` or `module.path:input`.
        chunk_bytes: size of the store's chunks.
    """

    model: str
    dataset: str
    store: str
    points: tuple[str, ...]
    rows: Rows = "both"
    batch_size: int = 8
    dtype: str | None = None
    store_dtype: Literal["float16", "float32"] = "float16"
    limit: int | None = None
    prompt: str | None = None
    target: bool = False
    as_text: bool = False
    resume: bool = True
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    module: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that make no sense."""
        if self.batch_size < 1:
            raise ValueError(f"got batch_size {self.batch_size}; expected at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"got limit {self.limit}; expected at least 1, or none for all samples")

    def rows_config(self) -> dict[str, Any]:
        """What decides which rows are stored, as JSON: a store is resumed only under the same."""
        return {
            "points": list(self.points),
            "rows": self.rows,
            "batch_size": self.batch_size,
            "store_dtype": self.store_dtype,
            "limit": self.limit,
            "prompt": self.prompt,
            "target": self.target,
            "as_text": self.as_text,
            "module": dict(self.module),
        }
