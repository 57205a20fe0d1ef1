"""`modegap compare FOLDER...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.table import Table


@dataclass(frozen=True, slots=True)
class Config:
    """What is compared.

    Attributes:
        studies: folders with the results of a model each, as the commands wrote them with --out.
    """

    studies: Sequence[str]


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Pooling, models under one text law, and the published numbers: whatever the studies allow.

    Raises:
        ValueError: nothing among the studies can be compared.
    """
    from modegap.analyses.compare import beside_published, encoders, pooling
    from modegap.analyses.study import load_study

    studies = [load_study(folder) for folder in config.studies]
    tables: list[Table] = []
    found: dict[str, Any] = {"pooling": {}, "encoders": [], "published": None}
    for study in studies:
        if study.probes is not None and study.media_probes is not None:
            result = pooling(study.probes, study.media_probes)
            tables.append(result.table())
            found["pooling"][study.name] = result.to_json()
    for group in encoders(studies):
        tables += group.tables()
        found["encoders"].append(group.to_json())
    published = beside_published(studies)
    if published is not None:
        tables.append(published.table())
        found["published"] = published.to_json()
    if not tables:
        raise ValueError(
            "nothing here can be compared: give a study with probes of pool=all and pool=modality, two studies that "
            "were aligned with the same text store, or one of a model and data set with published numbers"
        )
    return Output(tables, found)
