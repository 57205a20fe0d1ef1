"""What `extract` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["tokens", "pooled", "both"]
Wanted = Literal["tokens", "pooled", "both", "stats-only"]
Pool = Literal["all", "modality"]
StatsMode = Literal["precise", "exact", "fast"]


@dataclass(frozen=True, slots=True)
class ExtractConfig:
    """One capture run; a YAML file or the flags of `modegap extract` fill it.

    Attributes:
        model: Hub id or folder.
        dataset: folder, CSV or JSONL file, or text file.
        store: folder of the store to write.
        points: hook points, names or globs (`llm_hidden_*`).
        rows: every token row, one mean row a sample, both, or no rows but their means and covariances.
        pool: the mean row is over all tokens of a sample, or over those that stand for its media.
        batch_size: samples a forward, halved where memory runs out; chosen from the free memory unless given.
        workers: processes that decode media; none decodes in the thread that prepares batches.
        dtype: dtype of the model; the checkpoint's own unless given.
        store_dtype: dtype of the rows; fp16 is scaled by powers of two where it would overflow.
        limit: only the first so many samples.
        prompt: instead of the family's default prompt.
        target: let the decoder also read each sample's text after the prompt.
        as_text: feed the texts of a media data set instead of its media (the text law of the same samples).
        resume: go on with a store of the same plan; otherwise an existing store is an error.
        fused: one kernel each for norms, gated MLPs and rotary embedding of a half-precision model on a CUDA GPU,
            wherever that gives the model's own results up to rounding; without, the model's own code runs.
        skip_bad: leave out samples whose media cannot be decoded, and list them; otherwise they are an error.
        by: label whose class means are kept too (stats-only).
        stats_mode: arithmetic of the covariances (stats-only), as in `modegap cov`.
        preflight: refuse before the first forward a run that disk or GPU memory cannot hold.
        stream_layers: pass the decoder's layers one at a time through one device over the whole data set.
        work: folder for the hidden states between layers (stream_layers); `<store>.work` unless given.
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
    rows: Wanted = "both"
    pool: Pool = "all"
    batch_size: int | None = None
    workers: int = 0
    dtype: str | None = None
    store_dtype: Literal["float16", "float32"] = "float16"
    limit: int | None = None
    prompt: str | None = None
    target: bool = False
    as_text: bool = False
    resume: bool = True
    fused: bool = True
    skip_bad: bool = False
    by: str | None = None
    stats_mode: StatsMode = "precise"
    preflight: bool = True
    stream_layers: bool = False
    work: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    module: dict[str, str] = field(default_factory=dict)
    chunk_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that make no sense and for options that exclude each other."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"got batch_size {self.batch_size}; expected at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"got limit {self.limit}; expected at least 1, or none for all samples")
        if self.workers < 0:
            raise ValueError(f"got workers {self.workers}; expected 0 or more")
        if self.by is not None and self.rows != "stats-only":
            raise ValueError(f"got by={self.by!r} with rows={self.rows!r}; by belongs to rows='stats-only'")
        if self.work is not None and not self.stream_layers:
            raise ValueError("got work without stream_layers; the folder is for hidden states between layers")
        if self.stream_layers and self.device_map is not None:
            raise ValueError(
                f"got stream_layers with device_map={self.device_map!r}; layers pass through one device: "
                "choose one of the two"
            )

    @property
    def stored(self) -> Rows | None:
        """The rows that are stored; None for stats-only."""
        return None if self.rows == "stats-only" else self.rows

    def rows_config(self) -> dict[str, Any]:
        """What decides which rows are stored, as JSON: a store is resumed only under the same."""
        return {
            "points": list(self.points),
            "rows": self.rows,
            "pool": self.pool,
            "batch_size": self.batch_size,
            "store_dtype": self.store_dtype,
            "limit": self.limit,
            "prompt": self.prompt,
            "target": self.target,
            "as_text": self.as_text,
            "skip_bad": self.skip_bad,
            "by": self.by,
            "stats_mode": self.stats_mode,
            "stream_layers": self.stream_layers,
            "module": dict(self.module),
        }
