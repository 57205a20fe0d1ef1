"""Streaming moments: mean, covariance, cross-covariance, class means, energy along directions."""

from .classes import ClassMoments
from .cross import CrossMoments
from .fourier import FourierFeatures, FourierResult
from .moments import Moments
from .projection import ProjectionEnergy
from .result import ClassMomentsResult, CrossMomentsResult, MomentsResult, ProjectionEnergyResult
from .rows import Projections, RowSample, RowValues
from .saved import MomentsStore, has_moments, save_moments

__all__ = [
    "ClassMoments",
    "ClassMomentsResult",
    "CrossMoments",
    "CrossMomentsResult",
    "FourierFeatures",
    "FourierResult",
    "Moments",
    "MomentsResult",
    "MomentsStore",
    "ProjectionEnergy",
    "ProjectionEnergyResult",
    "Projections",
    "RowSample",
    "RowValues",
    "has_moments",
    "save_moments",
]
