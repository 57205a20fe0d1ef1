"""Reports: results, charts and tables on one self-contained HTML page, and as files beside it."""

from .model import Gallery, Headline, Item, Report, Section, Tile
from .write import write_report

__all__ = ["Gallery", "Headline", "Item", "Report", "Section", "Tile", "write_report"]
