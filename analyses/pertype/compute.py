"""`pertype`: in which modes the classes of each label differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.align import Modes
from modegap.analyses.distance import rows_of_samples, w1
from modegap.analyses.probe import ProbeResult, label_classes, label_names
from modegap.analyses.probe.labels import LabelProblem
from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate
from modegap.engine.moments import ClassMoments, ClassMomentsResult, RowSample
from modegap.engine.reduce import reduce
from modegap.kernels import rayleigh
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .config import PertypeConfig
from .outcome import Correlation, PertypeResult, TypeAlignment

if TYPE_CHECKING:
    from modegap.engine.stream import Kind

Float = NDArray[np.float64]
Codes = NDArray[np.int64]
Progress = Callable[[int, int, int], None]

_CLASS_ROWS = 5
_EXACT = 8
_BLOCK = 512
_NUMBERS: dict[str, Callable[[TypeAlignment], float | None]] = {
    "S_B in MS": lambda t: t.ms,
    "S_B in MS, clear of noise": lambda t: t.ms_clear,
    "Σ c ρ": lambda t: t.alignment,
    "W1 in MS over W1 in TA": lambda t: t.w1_ms / t.w1_ta if t.w1_ms is not None and t.w1_ta else None,
}


def pertype(
    store: ActivationStore | str | Path,
    modes: Modes | str | Path,
    probes: ProbeResult | str | Path | None = None,
    config: PertypeConfig | None = None,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PertypeResult:
    """The between-class scatter of every label, split over modality-specific and text-aligned modes.

    Args:
        store: modal store with labels.
        modes: of `align`, or its file; rows are those at `modes.point`.
        probes: of `probe`, or its file, for the degradation.
        config: options; `options` are fields of it given by name.
        device: where rows are reduced; None is the host.
        progress: of `reduce`.

    Raises:
        ValueError: unknown options, modes of another width, or a file that holds something else.
        StoreError: an unknown label, or a store without the modes' hook point or the rows asked for.
    """
    config = with_options(config or PertypeConfig(), options)
    store = as_store(store)
    found: Modes = _loaded(modes, Modes)
    found_probes = None if probes is None else _loaded(probes, ProbeResult)
    run = _Run(store, found, _kind(store, found, config), config, device, progress)
    types, certificates = [], []
    for label in label_names(store, config.labels):
        entry, certificate = run.of(label)
        if found_probes is not None:
            entry = replace(entry, degradation=_degradation(found_probes, label, config.degradation))
        types.append(entry)
        certificates += [certificate] if certificate is not None else []
    if not certificates:
        said = "; ".join(f"{t.label}: {t.message}" for t in types)
        raise StoreError(f"no label could be analysed: {said}")
    hashes = {"store": store.content_hash()}
    return PertypeResult(
        replace(config, labels=tuple(t.label for t in types)),
        found.point,
        found.text_point,
        run.kind,
        found.config.threshold,
        len(found.ms),
        len(found.ta),
        tuple(types),
        tuple(_correlations(types)),
        replace(certificates[0], store_hashes=hashes),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    store: ActivationStore
    modes: Modes
    kind: Kind
    config: PertypeConfig
    device: str | torch.device | None
    progress: Progress | None

    def of(self, label: str) -> tuple[TypeAlignment, Certificate | None]:
        """The entry of one label, and the certificate of its rows."""
        try:
            classes = label_classes(self.store, label)
            codes, count = _usable(classes.codes)
        except LabelProblem as problem:
            return TypeAlignment(label, message=str(problem)), None
        moments = self._reduce(ClassMoments(codes, count, mode=self.config.precision))
        total = float(moments.between_factor().square().sum())
        if not total > 0:
            message = "its class means are all the same, so there is no scatter between them"
            return TypeAlignment(label, moments.count, count, message=message), moments.certificate
        entry = self._scatter(label, moments, count, total)
        try:
            entry = replace(entry, **self._transport(codes, count, moments.mean))
        except LabelProblem as problem:
            entry = replace(entry, message=str(problem))
        return entry, moments.certificate

    def _scatter(self, label: str, moments: ClassMomentsResult, count: int, total: float) -> TypeAlignment:
        modes, n = self.modes, moments.count
        factor = moments.between_factor()
        between, variance = np.full(modes.d, np.nan), np.full(modes.d, np.nan)
        valid = np.flatnonzero(np.isfinite(modes.rho))
        for start in range(0, len(valid), _BLOCK):
            index = valid[start : start + _BLOCK]
            block = torch.from_numpy(np.ascontiguousarray(modes.U[:, index])).to(factor.device)
            between[index] = (factor.T @ block).square_().sum(0).cpu().numpy()
            variance[index] = rayleigh(block, moments.covariance).cpu().numpy()
        trace = float(moments.covariance.trace())
        # E[S_B] of classes with equal means is (C - 1) / (n - C) of the scatter within (one-way analysis of variance)
        noise = (count - 1) / (n - count) if n > count else float("inf")
        clear_total = total - noise * (trace - total)
        ms, ta = modes.ms, modes.ta
        clear = float(between[ms].sum() - noise * (variance[ms] - between[ms]).sum())
        return TypeAlignment(
            label,
            n,
            count,
            ms=float(between[ms].sum() / total),
            ta=float(between[ta].sum() / total),
            ms_clear=clear / clear_total if clear_total > 0 else None,
            ms_variance=float(variance[ms].sum() / trace),
            alignment=float((between[valid] * modes.rho[valid]).sum() / total),
            covered=float(between[valid].sum() / total),
        )

    def _transport(self, codes: Codes, count: int, mean: torch.Tensor) -> dict[str, Any]:
        """W1 between classes in both spans, and between groups of rows of mixed class."""
        config, modes = self.config, self.modes
        dimension = min(config.dimension, len(modes.ms), len(modes.ta))
        if not dimension:
            raise LabelProblem("no W1 between classes: one of the two kinds of modes is empty")
        rng = np.random.default_rng(config.seed)
        rows = [
            rows_of_samples(self.store, modes.point, self.kind, codes == code, config.samples, rng)
            for code in range(count)
        ]
        large = [code for code in range(count) if len(rows[code]) >= _CLASS_ROWS]
        pairs = list(combinations(large, 2))
        if not pairs:
            raise LabelProblem(f"no W1: fewer than two classes have {_CLASS_ROWS} rows")
        if len(pairs) > config.pairs:
            pairs = [pairs[i] for i in np.sort(rng.choice(len(pairs), config.pairs, replace=False))]
        union = np.unique(np.concatenate([rows[code] for code in large]))
        basis = np.ascontiguousarray(modes.U[:, np.concatenate([modes.ms[:dimension], modes.ta[:dimension]])])
        kept = self._reduce(
            RowSample(torch.from_numpy(union), modes.d, torch.from_numpy(basis), mean.double().cpu())
        )
        values = kept.values.numpy()
        at = {code: np.searchsorted(union, rows[code]) for code in large}
        anywhere = np.arange(len(union))

        def mean_w1(groups: Sequence[tuple[Codes, Codes]], columns: slice) -> float:
            return float(np.mean([w1(values[i, columns], values[j, columns]) for i, j in groups]))

        real = [(at[i], at[j]) for i, j in pairs]
        mixed = [self._mixed(len(i), len(j), anywhere, rng) for i, j in real]
        ms, ta = slice(0, dimension), slice(dimension, 2 * dimension)
        return {
            "dimension": dimension,
            "pairs": len(pairs),
            "w1_ms": mean_w1(real, ms),
            "w1_ta": mean_w1(real, ta),
            "w1_ms_floor": mean_w1(mixed, ms),
            "w1_ta_floor": mean_w1(mixed, ta),
        }

    @staticmethod
    def _mixed(n: int, m: int, rows: Codes, rng: np.random.Generator) -> tuple[Codes, Codes]:
        """Two disjoint groups of rows of n and m, or as many as there are in the same proportion."""
        share = min(1.0, len(rows) / (n + m))
        n, m = max(int(n * share), 1), max(int(m * share), 1)
        drawn = rng.choice(rows, min(n + m, len(rows)), replace=False)
        return drawn[:n], drawn[n : n + m]

    def _reduce(self, reduction: Any) -> Any:
        return reduce(
            self.store,
            self.modes.point,
            reduction,
            kind=self.kind,
            device=self.device,
            progress=self.progress,
        )


def _usable(codes: Codes) -> tuple[Codes, int]:
    """Codes 0..C-1 of the classes that occur.

    Raises:
        LabelProblem: fewer than two.
    """
    seen = np.unique(codes[codes >= 0])
    if len(seen) < 2:
        raise LabelProblem(f"{len(seen)} class, scatter between classes needs two")
    out = np.full(len(codes), -1, dtype=np.int64)
    known = codes >= 0
    out[known] = np.searchsorted(seen, codes[known])
    return out, len(seen)


def _kind(store: ActivationStore, modes: Modes, config: PertypeConfig) -> Kind:
    if modes.point not in store.points:
        raise StoreError(unknown_name("hook point", modes.point, store.points))
    info = store.points[modes.point]
    if info.width != modes.d:
        raise ValueError(
            f"the modes are {modes.d} wide, {modes.point} of the store {info.width}; use its own modes"
        )
    held: tuple[Kind, ...] = ("tokens", "pooled") if info.rows == "both" else (info.rows,)
    wanted = config.rows or ("pooled" if "pooled" in held else "tokens")
    if wanted not in held:
        raise StoreError(
            f"{modes.point} has no {wanted} rows: extract with rows=both, or choose rows={held[0]}"
        )
    return wanted


def _degradation(probes: ProbeResult, label: str, points: tuple[str, str]) -> float | None:
    above = []
    for point in points:
        cell = next((c for c in probes.cells if (c.point, c.label) == (point, label)), None)
        if cell is None or cell.accuracy is None or cell.chance is None:
            return None
        above.append((cell.accuracy - cell.chance) / (1 - cell.chance))
    return above[0] - above[1]


def _correlations(types: Sequence[TypeAlignment]) -> list[Correlation]:
    from scipy.stats import permutation_test, spearmanr

    out = []
    for name, number in _NUMBERS.items():
        pairs = [(number(t), t.degradation) for t in types]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        x, y = np.array([a for a, _ in known]), np.array([b for _, b in known])
        if len(known) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue

        def statistic(given: Float, y: Float = y) -> float:
            return float(spearmanr(given, y).statistic)

        resamples = np.inf if len(known) <= _EXACT else 9999
        options: dict[str, Any] = {"permutation_type": "pairings", "n_resamples": resamples, "rng": 0}
        tested: Any = permutation_test((x,), statistic, **options)
        out.append(Correlation(name, len(known), float(tested.statistic), float(tested.pvalue)))
    return out


def _loaded(given: Any, kind: type[Any]) -> Any:
    if isinstance(given, kind):
        return given
    from modegap.analyses.saved import load_result

    found = load_result(given)
    if not isinstance(found, kind):
        raise ValueError(f"{given} holds a {type(found).__name__}, expected {kind.__name__}")
    return found
