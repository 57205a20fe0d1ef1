"""What the decoder experiments share: options of the replay, statistics with intervals, how a source is opened."""

from .config import ReplayConfig

__all__ = ["ReplayConfig"]
