"""Streaming moments: mean, covariance, cross-covariance, class means, energy along directions."""

from .classes import ClassMoments
from .cross import CrossMoments
from .fourier import FourierFeatures, FourierResult
from .moments import Moments
from .projection import ProjectionEnergy
from .result import ClassMomentsResult, CrossMomentsResult, MomentsResult, ProjectionEnergyResult
from .rows import Projections, RowSample, RowValues

__all__ = [
    "ClassMoments",
    "ClassMomentsResult",
    "CrossMoments",
    "CrossMomentsResult",
    "FourierFeatures",
    "FourierResult",
    "Moments",
    "MomentsResult",
    "ProjectionEnergy",
    "ProjectionEnergyResult",
    "Projections",
    "RowSample",
    "RowValues",
]
