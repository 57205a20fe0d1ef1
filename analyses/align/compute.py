"""`align`: modes of the modal covariance and how much of their variance text has."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.result import with_options
from modegap.engine.cluster import joined, rayleigh_on
from modegap.engine.moments import Moments, MomentsResult, MomentsStore, has_moments
from modegap.engine.reduce import reduce
from modegap.kernels import rayleigh
from modegap.stores import ActivationStore

from .config import AlignConfig
from .groups import Both, GroupMoments, GroupProjection, assign_groups
from .inputs import LawInputs, Source, resolve_laws
from .interval import RatioGroups, Shrink, bootstrap, jackknife
from .modes import PAPER_CLAMP, Modes
from .spectrum import eigenpairs, noise_floor, oas_weight

if TYPE_CHECKING:
    from modegap.engine.batch import ActivationBatch
    from modegap.engine.certificate import Certificate
    from modegap.engine.cluster import Cluster
    from modegap.engine.reduction import Reduction
    from modegap.engine.stream import Progress

Float = NDArray[np.float64]
R = TypeVar("R")

_BLOCK = 512
_FEW_ROWS = 5


def align(
    modal: Source | str | Path,
    text: Source | str | Path,
    config: AlignConfig | None = None,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    cluster: str | Cluster | None = None,
    **options: Any,
) -> Modes:
    """Modes of the modal rows' covariance, each with rho_k = u_k' Sigma_T u_k / lambda_k.

    Reads the text rows once, and the modal rows once for Sigma_M and, for the interval, once more along the
    modes found. Holds the modes, one covariance and, at its peak, the eigensolver's workspace: two stores of
    24,576 fp16 token rows at d = 4096 took 0.72 GB in all.

    Args:
        modal: store (or its path) of the model fed with media, or the statistics that `extract_moments` left.
        text: store (or its path) of the decoder fed with text, likewise.
        config: options; `options` are fields of it given by name.
        device: where the covariances are accumulated.
        progress: called in every pass as progress(rows, rows in all, bytes).
        cluster: workers that share the passes and the modes' quotients, as in `reduce`.

    Raises:
        ValueError: unknown options, widths that differ, or rows without any variance.
        StoreError: unknown hook points, rows that are not stored, or fewer than two rows.
    """
    config = with_options(config or AlignConfig(), options)
    inputs = resolve_laws(_opened(modal), _opened(text), config)
    with joined(cluster) as workers:
        run = _Run(inputs, config, device, progress, workers)
        modal_law = run.modal_law()
        groups = run.groups()
        text_law = run.text_law(modal_law, groups)
        return _modes(run, modal_law, text_law, groups)


@dataclass(frozen=True, slots=True, eq=False)
class _ModalLaw:
    values: Float
    vectors: Float
    floor: Float
    considered: NDArray[np.int64]
    valid: NDArray[np.int64]
    n: int
    shrink: Shrink
    certificate: Certificate


@dataclass(frozen=True, slots=True, eq=False)
class _TextLaw:
    variance: Float
    trace: float
    n: int
    shrink: Shrink
    moments: GroupMoments | None
    certificate: Certificate


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    modal: NDArray[np.int64]
    text: NDArray[np.int64]
    count: int
    paired: bool


@dataclass(frozen=True, slots=True)
class _Run:
    inputs: LawInputs
    config: AlignConfig
    device: str | torch.device | None
    progress: Progress | None
    cluster: Cluster | None

    def modal_law(self) -> _ModalLaw:
        """Eigenpairs of Sigma_M, and which of them count."""
        config, paper = self.config, self.config.law == "paper"
        found = self._law(self.inputs.modal, self.inputs.point)
        n, certificate, mean = found.count, found.certificate, found.mean.cpu().numpy()
        audit_error = found.audit_error
        assert audit_error is not None  # Moments audits unless told not to
        variance = found.covariance.diagonal().cpu().numpy().copy()
        covariance = found.covariance
        del found  # the eigensolver overwrites the covariance: nothing else may hold a second one
        values, vectors = eigenpairs(covariance)
        del covariance
        d = len(values)
        if not values[0] > 0:
            raise ValueError(
                f"{self.inputs.point}: the {n} modal rows are all the same, so there are no modes; check the "
                "extraction with modegap info"
            )
        if paper:
            floor = np.zeros(d)
            valid = np.arange(d)
        elif config.rank_tol is not None:
            floor = np.full(d, config.rank_tol * values[0])
            valid = np.flatnonzero(values > floor)
        else:
            floor = noise_floor(
                values,
                vectors,
                mean=mean,
                variance=variance,
                n=n,
                fp16=self.inputs.modal.points[self.inputs.point].dtype == "float16",
                audit_error=audit_error,
            )
            valid = np.flatnonzero(values > floor)
        shrink = self._shrink(values.sum(), float(values @ values), n, d)
        return _ModalLaw(shrink(values), vectors, floor, valid[: config.top], valid, n, shrink, certificate)

    def text_law(self, modal: _ModalLaw, groups: _Groups | None) -> _TextLaw:
        """u_k' Sigma_T u_k of the modes that count, and the text's group moments from the same pass."""
        store, point = self.inputs.text, self.inputs.text_point
        moments: GroupMoments | None = None
        found: MomentsResult
        if groups is None:
            found = self._law(store, point)
        else:
            projection = GroupProjection(_basis(modal), groups.text, groups.count)
            both: Both[MomentsResult, GroupMoments] = Both(self._moments(), projection)
            found, moments = self._reduce(store, point, both)
        covariance = found.covariance
        d = len(covariance)
        variance = np.full(d, np.nan)
        if self.cluster is not None:
            chosen = modal.vectors[:, modal.valid]
            variance[modal.valid] = rayleigh_on(self.cluster, chosen, covariance.cpu().numpy(), _BLOCK)
        else:
            for start in range(0, len(modal.valid), _BLOCK):
                index = modal.valid[start : start + _BLOCK]
                block = torch.from_numpy(modal.vectors[:, index]).to(covariance.device)
                variance[index] = rayleigh(block, covariance).cpu().numpy()
        trace, square = float(covariance.trace()), float(torch.linalg.matrix_norm(covariance) ** 2)
        shrink = self._shrink(trace, square, found.count, d)
        return _TextLaw(shrink(variance), trace, found.count, shrink, moments, found.certificate)

    def groups(self) -> _Groups | None:
        """Samples to groups in both stores, or None where no interval is wanted or possible."""
        if isinstance(self.inputs.modal, MomentsStore) or isinstance(self.inputs.text, MomentsStore):
            return None
        modal, text = _complete(self.inputs.modal), _complete(self.inputs.text)
        count = min(self.config.groups, len(modal), len(text))
        if self.config.interval is None or count < 3:
            return None
        paired = set(modal) == set(text)
        of_modal = assign_groups(modal, count, self.config.seed)
        of_text = of_modal if paired else assign_groups(text, count, self.config.seed + 1)
        return _Groups(
            np.array([of_modal.get(name, 0) for name in self.inputs.modal.samples]),
            np.array([of_text.get(name, 0) for name in self.inputs.text.samples]),
            count,
            paired,
        )

    def interval(
        self, modal: _ModalLaw, text: _TextLaw, groups: _Groups | None, rho: Float
    ) -> tuple[Float, Float]:
        """Ends of the interval on rho of the considered modes, NaN elsewhere."""
        low, high = np.full_like(rho, np.nan), np.full_like(rho, np.nan)
        if groups is None or text.moments is None:
            return low, high
        projection = GroupProjection(_basis(modal), groups.modal, groups.count)
        moments = self._reduce(self.inputs.modal, self.inputs.point, projection)
        both = RatioGroups(moments, text.moments, groups.paired, modal.shrink, text.shrink)
        k, config = modal.considered, self.config
        if config.interval == "jackknife":
            low[k], high[k] = jackknife(both, rho[k], config.level)
        else:
            low[k], high[k] = bootstrap(both, rho[k], config.level, config.draws, config.seed)
        return low, high

    def _moments(self) -> Moments:
        if self.config.precision is not None:
            return Moments(mode=self.config.precision)
        return Moments(mode="exact" if self.config.law == "paper" else "precise")

    def _shrink(self, trace: float, square: float, n: int, d: int) -> Shrink:
        weight = self.config.shrinkage
        return Shrink(oas_weight(trace, square, n, d) if weight == "oas" else weight, trace / d)

    def _law(self, store: Source, point: str) -> MomentsResult:
        if not isinstance(store, MomentsStore):
            return self._reduce(store, point, self._moments())
        found, wanted = store.moments(point, self.inputs.kind), self._moments().mode
        if found.certificate.mode != wanted:
            raise ValueError(
                f"{store.path} holds covariances of mode {found.certificate.mode}, {wanted} is asked for: "
                f"set precision, or extract it with stats_mode={wanted}"
            )
        return found

    def _reduce(self, store: Source, point: str, reduction: Reduction[ActivationBatch, R]) -> R:
        assert isinstance(store, ActivationStore)  # passes over rows are planned for stores of rows only
        return reduce(
            store,
            point,
            reduction,
            kind=self.inputs.kind,
            device=self.device,
            progress=self.progress,
            cluster=self.cluster,
        )


def _modes(run: _Run, modal: _ModalLaw, text: _TextLaw, groups: _Groups | None) -> Modes:
    config, inputs, d = run.config, run.inputs, len(modal.values)
    rho = np.full(d, np.nan)
    floor = PAPER_CLAMP if config.law == "paper" else 0.0
    rho[modal.valid] = text.variance[modal.valid] / np.maximum(modal.values[modal.valid], floor)
    low, high = run.interval(modal, text, groups, rho)
    said = _warnings(run, modal, text, groups)
    for message in said:
        warnings.warn(message, stacklevel=3)
    rank = int((modal.values > PAPER_CLAMP).sum()) if config.law == "paper" else len(modal.valid)
    hashes = {"modal": inputs.modal.content_hash(), "text": inputs.text.content_hash()}
    return Modes(
        point=inputs.point,
        text_point=inputs.text_point,
        rows=inputs.kind,
        config=config,
        eigenvalues=modal.values,
        U=modal.vectors,
        text_variance=text.variance,
        text_trace=text.trace,
        rho=rho,
        rho_low=low,
        rho_high=high,
        floor=modal.floor,
        considered=modal.considered,
        n=modal.n,
        n_text=text.n,
        n_samples=len(_complete(inputs.modal)),
        n_samples_text=len(_complete(inputs.text)),
        shrinkage=(modal.shrink.weight, text.shrink.weight),
        groups=groups.count if groups else 0,
        paired=groups.paired if groups else False,
        warnings=said,
        certificate=replace(modal.certificate, rank=rank, n_over_d=modal.n / d, store_hashes=hashes),
        text_certificate=text.certificate,
    )


def _warnings(run: _Run, modal: _ModalLaw, text: _TextLaw, groups: _Groups | None) -> tuple[str, ...]:
    d, kind = len(modal.values), run.inputs.kind
    said = []
    for name, n in (("modal", modal.n), ("text", text.n)):
        if n < _FEW_ROWS * d:
            remedy = "extract token rows (rows=both)" if kind == "pooled" else "extract more samples"
            said.append(
                f"{n} {name} {kind} rows for {d} dimensions (n/d = {n / d:.2g}, under {_FEW_ROWS}): the "
                f"largest eigenvalues are biased upwards and rho is unreliable; {remedy}, or set shrinkage"
            )
    for name, store in (("modal", run.inputs.modal), ("text", run.inputs.text)):
        if (used := len(_complete(store))) < len(store.samples):
            said.append(
                f"the {name} store is not finished: only the first {used} of {len(store.samples)} samples "
                "are used"
            )
    if run.config.law == "paper" and modal.n <= d:
        said.append(
            f"at least {d - modal.n + 1} of the {d} eigenvalues are zero and their rho divides by "
            f"{PAPER_CLAMP:g}, as published"
        )
    if run.config.interval is not None and groups is None:
        rows = all(isinstance(store, ActivationStore) for store in (run.inputs.modal, run.inputs.text))
        why = "fewer than three complete samples in one of the stores" if rows else "statistics without rows"
        said.append(f"no interval on rho: {why}")
    return tuple(said)


def _basis(modal: _ModalLaw) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(modal.vectors[:, modal.considered]))


def _complete(store: Source) -> list[str]:
    """The samples that a pass reads: up to the first incomplete one."""
    done = store.complete_samples()
    return list(store.samples[: len(done) if done.all() else int(done.argmin())])


def _opened(store: Source | str | Path) -> Source:
    if isinstance(store, ActivationStore | MomentsStore):
        return store
    return MomentsStore.open(store) if has_moments(store) else ActivationStore.open(store)
