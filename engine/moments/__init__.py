"""Streaming moments: mean, covariance, cross-covariance, class means, energy along directions."""

from .classes import ClassMoments
from .cross import CrossMoments
from .moments import Moments
from .projection import ProjectionEnergy
from .result import ClassMomentsResult, CrossMomentsResult, MomentsResult, ProjectionEnergyResult
from .saved import MomentsStore, has_moments, save_moments

__all__ = [
    "ClassMoments",
    "ClassMomentsResult",
    "CrossMoments",
    "CrossMomentsResult",
    "Moments",
    "MomentsResult",
    "MomentsStore",
    "ProjectionEnergy",
    "ProjectionEnergyResult",
    "has_moments",
    "save_moments",
]
