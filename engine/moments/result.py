"""Frozen results of the moments reductions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True, eq=False)
class MomentsResult:
    """Mean and covariance of rows.

    Attributes:
        count: rows n.
        mean: fp64 [d].
        covariance: fp64 [d, d], ddof 1, exactly symmetric.
        absmax: largest magnitude of each channel, true units [d].
        overflow_count: values beyond fp16's 65504.
        audit_error: max |S_ij - S64_ij| / sqrt(S64_ii S64_jj) over the audited channels; None
            without an audit.
        audit_columns: int64, the audited channels.
        certificate: the facts above for reports, with kernel paths, versions and (from `reduce`) the store's
            hash.
    """

    count: int
    mean: torch.Tensor
    covariance: torch.Tensor
    absmax: torch.Tensor
    overflow_count: int
    audit_error: float | None
    audit_columns: torch.Tensor
    certificate: Certificate

    @property
    def width(self) -> int:
        """Channels d."""
        return len(self.mean)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of each channel, fp64 [d], ddof 1."""
        return self.covariance.diagonal().sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class ClassMomentsResult(MomentsResult):
    """Moments of the labelled rows, and the mean of each class; covariance = between() + within().

    Attributes:
        class_count: rows of each class, int64 [C].
        class_mean: fp64 [C, d]; NaN for a class without rows.
    """

    class_count: torch.Tensor
    class_mean: torch.Tensor

    def between_factor(self) -> torch.Tensor:
        """F fp64 [d, C'] over the classes with rows, S_B = F F'; u' S_B u = |F'u|^2 needs no d x d matrix."""
        seen = self.class_count > 0
        weight = (self.class_count[seen].double() / (self.count - 1)).sqrt()
        factor: torch.Tensor = ((self.class_mean[seen] - self.mean) * weight[:, None]).T.contiguous()
        return factor

    def between(self) -> torch.Tensor:
        """S_B = sum_c n_c (m_c - m)(m_c - m)' / (n - 1), fp64 [d, d]."""
        factor = self.between_factor()
        return factor @ factor.T

    def within(self) -> torch.Tensor:
        """S_W = covariance - S_B, fp64 [d, d]: scatter about the class means over n - 1."""
        return self.covariance - self.between()


@dataclass(frozen=True, slots=True, eq=False)
class CrossMomentsResult:
    """Means and cross-covariance of the same rows at two points.

    Attributes:
        count: rows n.
        mean_x: fp64 [p].
        mean_y: fp64 [q].
        cross_covariance: sum (x - mean_x)(y - mean_y)' / (n - 1), fp64 [p, q].
        overflow_count: values beyond fp16's 65504 at either point.
        audit_error: max |C_ij - C64_ij| / sqrt(var x_i var y_j) over the audited channels.
        certificate: as in MomentsResult; width is p.
    """

    count: int
    mean_x: torch.Tensor
    mean_y: torch.Tensor
    cross_covariance: torch.Tensor
    overflow_count: int
    audit_error: float | None
    certificate: Certificate


@dataclass(frozen=True, slots=True, eq=False)
class ProjectionEnergyResult:
    """Energy of centred rows along given directions.

    Attributes:
        count: rows n.
        mean: mean of x'u_k, fp64 [K].
        energy: sum ((x - mean x)'u_k)^2, fp64 [K].
        overflow_count: values beyond fp16's 65504.
        audit_error: largest relative error of the energy over the audited directions.
        certificate: as in MomentsResult; width is d.
    """

    count: int
    mean: torch.Tensor
    energy: torch.Tensor
    overflow_count: int
    audit_error: float | None
    certificate: Certificate

    @property
    def variance(self) -> torch.Tensor:
        """u_k' S u_k for the rows' covariance S (ddof 1), fp64 [K]."""
        return self.energy / (self.count - 1)
