"""A study: the results of one or more models, on disk and as one report."""

from .model import Study, load_study
from .pages import study_report

__all__ = ["Study", "load_study", "study_report"]
