"""The batched solver against scikit-learn in fp64, and what goes around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from modegap.analyses.probe import ProbeConfig
from modegap.analyses.probe.batched import Job, fit_batched, gradient, standardise
from modegap.analyses.probe.calibration import best_trust, calibrated, cross_entropy, entropy
from modegap.analyses.probe.fit import Drawn, Labelled, choose, fit_point, macro_f1
from modegap.analyses.probe.intervals import corrected_interval, ratio_interval, wilson_interval
from modegap.analyses.probe.lbfgs import _pieces, _Run, minimise
from modegap.analyses.probe.problems import Problem
from modegap.analyses.probe.splits import Request, random_classes, tasks


def rows(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated channels of very different scale around class centres, every class present."""
    rng = np.random.default_rng(seed)
    codes = np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, n - 2 * classes)]
    shared = rng.standard_normal((n, 4)) @ rng.standard_normal((4, d))
    x = 0.6 * rng.standard_normal((classes, d))[codes] + rng.standard_normal((n, d)) + 2 * shared
    return (x * np.geomspace(10, 0.01, d) + 5).astype(np.float32), codes


def objective(z: np.ndarray, codes: np.ndarray, weights: np.ndarray, shift: np.ndarray, C: float) -> float:
    """Loss in fp64; `weights` [d, K] as they are penalised (the first column 0 for two classes)."""
    log_p = log_softmax(z.astype(np.float64) @ weights + shift, axis=1)
    return float(-log_p[np.arange(len(codes)), codes].sum() + (weights**2).sum() / (2 * C))


def optimum(z: np.ndarray, codes: np.ndarray, C: float) -> LogisticRegression:
    """scikit-learn on fp64 rows (in fp32 its line search fails before a tight tolerance)."""
    return LogisticRegression(C=C, tol=1e-9, max_iter=20000).fit(z.astype(np.float64), codes)


@pytest.mark.parametrize("gram", [True, False], ids=["gram", "rows"])
@pytest.mark.parametrize(
    ("n", "d", "classes", "C"),
    [(120, 200, 6, 1.0), (120, 200, 2, 1.0), (300, 40, 3, 0.1), (80, 200, 20, 100.0)],
)
def test_same_optimum_as_scikit_learn_in_fp64(n: int, d: int, classes: int, C: float, gram: bool) -> None:
    x, codes = rows(n, d, classes)
    z = StandardScaler().fit_transform(x)
    model = optimum(z, codes, C)
    weights, shift = model.coef_.T, model.intercept_
    if classes == 2:
        weights, shift = np.c_[0 * weights, weights], np.r_[0, shift]
    best = objective(z, codes, weights, shift, C)
    t = torch.from_numpy(z)
    problem = Problem(t, codes, classes, C, gram=t @ t.T if gram else None)
    found = minimise([problem], tol=1e-7, max_iter=5000)[0]
    assert found.converged
    mine = problem.primal(found.coefficients).double().numpy().T
    reached = objective(z, codes, mine, found.intercept.double().numpy(), C)
    assert reached == pytest.approx(best, rel=1e-6)
    assert found.objective == pytest.approx(reached, rel=1e-6)
    assert gradient(problem, torch.from_numpy(mine.T), found.intercept) <= 2e-7
    # an optimum, not only its value: moving away in any direction costs
    for seed in range(3):
        step = 0.05 * np.random.default_rng(seed).standard_normal(mine.shape) * (mine != 0)
        assert objective(z, codes, mine + step, found.intercept.double().numpy(), C) > reached


def test_stops_by_the_rule_of_scikit_learn() -> None:
    x, codes = rows(200, 300, 8)
    z = torch.from_numpy(StandardScaler().fit_transform(x))
    problem = Problem(z, codes, 8, 1.0, gram=z @ z.T)
    taken = []
    for tol in (1e-2, 1e-4, 1e-6):
        found = minimise([problem], tol=tol, max_iter=1000)[0]
        assert found.converged
        assert found.gradient <= tol
        weights = problem.primal(found.coefficients)
        assert gradient(problem, weights, found.intercept) == pytest.approx(found.gradient, rel=0.02)
        taken.append(found.iterations)
    assert taken == sorted(set(taken))
    theirs = LogisticRegression(tol=1e-4, max_iter=1000).fit(z.double().numpy(), codes).n_iter_[0]
    assert theirs <= taken[1] + 1 <= theirs + 12
    short = minimise([problem], tol=1e-6, max_iter=3)[0]
    assert (short.iterations, short.converged) == (3, False)
    assert short.gradient > 1e-6


def test_side_by_side_is_one_by_one() -> None:
    """Problems of different sizes, two classes among them, in one padded batch."""
    problems = []
    for n, classes, C in ((90, 5, 1.0), (140, 2, 1.0), (60, 9, 0.3)):
        x, codes = rows(n, 150, classes, seed=n)
        z = torch.from_numpy(StandardScaler().fit_transform(x))
        problems.append(Problem(z, codes, classes, C, gram=z @ z.T))
    for some in (problems, [Problem(p.z, p.codes, p.classes, p.C) for p in problems]):
        for together, problem in zip(minimise(some, tol=1e-6, max_iter=2000), some, strict=True):
            alone = minimise([problem], tol=1e-6, max_iter=2000)[0]
            assert together.converged
            assert together.objective == pytest.approx(alone.objective, rel=1e-6)
            assert together.coefficients.shape == (problem.classes, len(problem.codes))


def test_inner_products_in_pieces_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors cut in pieces that their length is no multiple of, the last one shorter."""
    problems = []
    for n, classes in ((90, 5), (71, 2)):
        x, codes = rows(n, 150, classes, seed=n)
        z = torch.from_numpy(StandardScaler().fit_transform(x))
        problems.append(Problem(z, codes, classes, 1.0, gram=z @ z.T))
    whole = minimise(problems, tol=1e-6, max_iter=2000)
    monkeypatch.setattr("modegap.analyses.probe.lbfgs._pieces", lambda *_: 7)
    for cut, other in zip(minimise(problems, tol=1e-6, max_iter=2000), whole, strict=True):
        assert cut.converged
        assert cut.objective == pytest.approx(other.objective, rel=1e-6)
        np.testing.assert_allclose(cut.coefficients, other.coefficients, atol=2e-4)
        assert abs(cut.iterations - other.iterations) <= 3


@pytest.mark.parametrize("gram", [True, False], ids=["gram", "rows"])
def test_problems_that_are_done_leave_the_batch(gram: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two hard problems among easy ones the smaller is the last, with the padding of the larger around it."""
    problems = []
    for number, (n, classes) in enumerate(((140, 4), (60, 3), (90, 5), (70, 2), (150, 6))):
        x, codes = rows(n, 100, classes, seed=n)
        z = torch.from_numpy(StandardScaler().fit_transform(x))
        C = {1: 100.0, 4: 1.0}.get(number, 1e-3)
        problems.append(Problem(z, codes, classes, C, gram=z @ z.T if gram else None))
    sizes = []
    drop = _Run.drop_ended

    def counted(run: _Run) -> None:
        drop(run)
        sizes.append(len(run.active))

    monkeypatch.setattr(_Run, "drop_ended", counted)
    together = minimise(problems, tol=1e-5, max_iter=2000)
    assert sizes == [2, 1]
    for found, problem in zip(together, problems, strict=True):
        alone = minimise([problem], tol=1e-5, max_iter=2000)[0]
        assert found.converged
        assert found.objective == pytest.approx(alone.objective, rel=1e-6)
        assert abs(found.iterations - alone.iterations) <= 3 + 0.1 * alone.iterations
        assert found.coefficients.shape == (problem.classes, len(problem.codes))
        weights = problem.primal(found.coefficients)
        assert gradient(problem, weights, found.intercept) <= 1.1e-5


def test_pieces_fill_a_gpu_and_leave_a_host_alone() -> None:
    assert _pieces("cpu", 15, 100_000) == 1
    assert 15 * _pieces("cuda", 15, 100_000) >= 132 * 2
    assert _pieces("cuda", 4096, 100_000) == 1
    assert _pieces("cuda", 1, 200) == 1


@pytest.mark.parametrize("room", [2e9, 1.0], ids=["one batch", "a batch a job"])
def test_jobs_side_by_side_as_on_a_gpu(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of labels with and without a Gram matrix, folds and control among them, in batches by memory."""
    monkeypatch.setattr("modegap.analyses.probe.batched._HOST", room)
    x, codes = rows(330, 80, 4)
    config = ProbeConfig(calibration=2, control="samples", seeds=(1, 2), C=0.1)
    planned = tasks(np.arange(330), codes, config) + tasks(np.arange(100), codes[:100] % 2, config)
    jobs = [Job(t.train, t.test, t.requests, [0.1] * len(t.requests)) for t in planned]
    found = fit_batched(torch.from_numpy(x), jobs, tol=1e-6, max_iter=2000, together=True)
    alone = fit_batched(torch.from_numpy(x), jobs, tol=1e-6, max_iter=2000, together=False)
    assert [len(fits) for fits in found] == [4] * 4
    for fits, others in zip(found, alone, strict=True):
        for a, b in zip(fits, others, strict=True):
            assert a.converged
            np.testing.assert_allclose(a.logits, b.logits, atol=2e-3)


def test_some_rows_of_a_gram_matrix_are_a_problem_of_their_own() -> None:
    x, codes = rows(130, 90, 4)
    z = torch.from_numpy(StandardScaler().fit_transform(x))
    some = np.sort(np.random.default_rng(1).choice(130, 100, replace=False))
    index = torch.from_numpy(some)
    own = Problem(z[index].clone(), codes[some], 4, 1.0)
    expected = minimise([own], tol=1e-6, max_iter=1000)[0]
    gram = (z @ z.T)[index][:, index]
    for problem in (
        Problem(z, codes[some], 4, 1.0, index=index, gram=gram),
        Problem(z, codes[some], 4, 1.0, index=index),
    ):
        found = minimise([problem], tol=1e-6, max_iter=1000)[0]
        assert found.objective == pytest.approx(expected.objective, rel=1e-6)
        np.testing.assert_allclose(
            problem.primal(found.coefficients), own.primal(expected.coefficients), atol=2e-4
        )


def test_standardised_rows_are_the_scalers() -> None:
    x, _ = rows(200, 30, 3)
    x[:, 3] = 7.25  # constant: divided by 1
    x[:, 4] = 1000 + 1e-3 * x[:, 4]
    train, test = np.arange(5, 170), np.r_[np.arange(5), np.arange(170, 200)]
    z, tested = standardise(torch.from_numpy(x), torch.from_numpy(train), torch.from_numpy(test))
    scaler = StandardScaler().fit(x[train].astype(np.float64))
    np.testing.assert_allclose(z, scaler.transform(x[train].astype(np.float64)), atol=2e-5)
    np.testing.assert_allclose(tested, scaler.transform(x[test].astype(np.float64)), atol=2e-5)
    assert (z[:, 3] == 0).all()


def test_a_stalled_fit_goes_on_in_fp64() -> None:
    x, codes = rows(150, 100, 3)
    index = np.arange(150)
    job = Job(index[:120], index[120:], [Request(codes[:120], np.arange(3))], [1.0], audit=True)
    found = fit_batched(torch.from_numpy(x), [job], tol=1e-11, max_iter=3000)[0][0]
    assert found.converged
    assert found.gradient is not None
    assert found.gradient <= 1e-11
    assert found.audit is not None
    assert found.audit < 1e-6  # of the weights rounded to fp32


@pytest.mark.parametrize("C", [1e-4, 1e-5])
def test_a_strong_penalty_does_not_lead_the_gram_matrix_astray(C: float) -> None:
    x, codes = rows(90, 100, 5, seed=90)
    z = StandardScaler().fit_transform(x)
    t = torch.from_numpy(z)
    alone = minimise([Problem(t, codes, 5, C, gram=t @ t.T)], tol=1e-5, max_iter=1000)[0]
    assert not alone.converged  # what the fit below begins with
    index = np.arange(90)
    job = Job(index, index[:9], [Request(codes, np.arange(5))], [C], audit=True)
    found = fit_batched(torch.from_numpy(x), [job], tol=1e-5, max_iter=1000)[0][0]
    assert found.converged
    model = optimum(z, codes, C)
    np.testing.assert_allclose(found.logits, model.decision_function(z[:9].astype(np.float64)), atol=2e-2)
    assert found.audit is not None
    assert found.audit < 2e-5


@pytest.mark.parametrize(("n", "d", "classes"), [(240, 200, 5), (260, 50, 2), (500, 60, 7)])
def test_same_accuracy_as_scikit_learn_at_convergence(n: int, d: int, classes: int) -> None:
    x, codes = rows(n, d, classes)
    cell = Labelled(np.arange(n), codes)
    options = {"tol": 1e-6, "calibration": 3, "control": "samples", "seeds": (1, 2, 3)}
    theirs = next(fit_point(x, [cell], ProbeConfig(solver="sklearn", **options)))
    ours = next(fit_point(x, [cell], ProbeConfig(solver="batched", n_jobs=1, **options)))
    assert (theirs.solver, ours.solver) == ("sklearn", "batched")
    for a, b in zip(theirs.scores, ours.scores, strict=True):
        assert abs(a.accuracy - b.accuracy) * a.n_test <= 1 + 1e-9
        assert a.control is not None
        assert b.control is not None
        assert abs(a.control - b.control) * a.n_test <= 1 + 1e-9
        assert a.cross_entropy == pytest.approx(b.cross_entropy, abs=5e-3)
        assert b.converged
        assert b.gradient is not None
        assert b.gradient <= 1e-6
    assert ours.scores[0].audit == pytest.approx(ours.scores[0].gradient, rel=0.1, abs=1e-7)
    assert max(s.accuracy for s in ours.scores) > 1.5 / classes
    two = next(fit_point(x, [cell], ProbeConfig(solver="batched", n_jobs=2, **options)))
    assert [s.accuracy for s in two.scores] == [s.accuracy for s in ours.scores]


def test_a_device_gives_the_scores_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = rows(150, 60, 4)
    cells = [Labelled(np.arange(150), codes), Labelled(np.arange(100), codes[:100] % 2)]
    options = {"tol": 1e-6, "calibration": 2, "control": "samples", "seeds": (1, 2), "solver": "batched"}
    host = list(fit_point(x, cells, ProbeConfig(n_jobs=1, **options)))
    monkeypatch.setattr(ProbeConfig, "on_device", property(lambda self: True))
    device = list(fit_point(x, cells, ProbeConfig(device="cpu", **options)))
    for ours, theirs in zip(device, host, strict=True):
        assert [s.seed for s in ours.scores] == [1, 2]
        for a, b in zip(ours.scores, theirs.scores, strict=True):
            assert abs(a.accuracy - b.accuracy) * a.n_test <= 1 + 1e-9
            assert a.cross_entropy == pytest.approx(b.cross_entropy, abs=1e-4)
            assert a.trust == pytest.approx(b.trust, abs=5e-3)


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for classes, count in ((2, 9), (7, 40), (50, 60)):  # of 50, some occur in neither
        codes, guess = rng.integers(0, classes, count), rng.integers(0, classes, count)
        theirs = f1_score(codes, guess, average="macro", zero_division=0.0)
        assert macro_f1(codes, guess) == pytest.approx(theirs, rel=1e-12)
    assert macro_f1(np.array([2, 2]), np.array([0, 0])) == 0


def test_splits_are_drawn_once_for_the_hook_points_that_share_a_label() -> None:
    x, codes = rows(120, 30, 3)
    config = ProbeConfig(seeds=(1, 2), calibration=2, solver="sklearn", tol=1e-2)
    cells = [Labelled(np.arange(120), codes), Labelled(np.arange(60), codes[:60])]
    drawn: Drawn = {}
    first = [fit.scores for fit in fit_point(x, cells, config, drawn)]
    kept = [id(task) for plan in drawn.values() for task in plan]
    assert len(kept) == 4
    assert [fit.scores for fit in fit_point(x, cells, config, drawn)] == first
    assert [id(task) for plan in drawn.values() for task in plan] == kept
    assert [fit.scores for fit in fit_point(x, cells, config)] == first
    grouped = Labelled(np.arange(120), codes, groups=np.arange(120) // 4)
    next(fit_point(x, [grouped], config, drawn))
    assert len(drawn) == 3


def test_the_faster_solver_is_chosen_and_the_papers_law_stays_with_the_reference() -> None:
    small, large = (2096, 4096, 1), (2096, 4096, 40)
    assert choose(300, 1024, 4, ProbeConfig())[0] == "sklearn"
    name, why = choose(*large, ProbeConfig())
    assert name == "batched"
    assert f"{2096 * 4096 * 40:,}" in why
    assert choose(5000, 1024, 40, ProbeConfig())[0] == "sklearn"
    assert choose(*large, ProbeConfig(law="paper"))[0] == "sklearn"
    assert choose(*large, ProbeConfig(solver="sklearn"))[0] == "sklearn"
    assert choose(*small, ProbeConfig(device="cuda"))[0] == "batched"
    with pytest.raises(ValueError, match="computes on the host"):
        ProbeConfig(solver="sklearn", device="cuda")


def test_calibration_knows_noise_and_keeps_a_good_probe() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 600)
    prior = np.log(np.bincount(codes) / 600)
    truth = 1.5 * rng.standard_normal((600, 3))
    drawn = np.array([rng.choice(3, p=np.exp(row)) for row in log_softmax(truth, axis=1)])
    flat = np.log(np.full(3, 1 / 3))
    # probabilities three times too sure in the logits need a third of the weight
    assert best_trust(log_softmax(3 * truth, axis=1) - flat, drawn, flat) == pytest.approx(1 / 3, abs=0.06)
    noise = 20 * rng.standard_normal((600, 3))
    assert best_trust(noise, codes, prior) < 0.02
    half = (noise[:300], np.arange(3), codes[:300])
    found = calibrated(half, [(noise[300:], np.arange(3), codes[300:])], codes[300:], 3)
    assert found.cross_entropy == pytest.approx(entropy(codes), abs=0.03)
    assert found.uncalibrated > 5
    # a class that the fitted rows lack keeps its prior
    lacking = calibrated(
        (truth[:300, :2], np.array([0, 2]), codes[:300]),
        [(truth[300:, :2], np.array([0, 2]), codes[300:])],
        codes[300:],
        3,
    )
    assert np.isfinite(lacking.cross_entropy)
    assert cross_entropy(np.zeros((600, 3)), codes, prior, 1.0) == pytest.approx(entropy(codes))


def test_folds_and_control_stay_inside_the_training_part() -> None:
    codes = np.arange(120) % 4
    groups = np.arange(120) // 6
    config = ProbeConfig(calibration=3, control="samples", seeds=(1,), group="g")
    task = tasks(np.arange(120), codes, config, groups)[0]
    fit, control, *folds = task.requests
    assert len(folds) == 3
    assert len(fit.codes) == len(task.train)
    assert sorted(np.concatenate([f.held for f in folds])) == list(range(len(task.train)))
    for fold in folds:
        assert not set(groups[task.train][fold.rows]) & set(groups[task.train][fold.held])
        np.testing.assert_array_equal(fold.codes, codes[task.train][fold.rows])
    assert task.control is not None
    assert (np.bincount(np.concatenate(task.control)) == 30).all()
    assert (control.codes != fit.codes).any()
    kinds = np.arange(120) // 5
    drawn = random_classes(codes, 3, kinds)
    assert all(len(set(drawn[kinds == kind])) == 1 for kind in range(24))
    assert len(set(drawn)) == 4


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    # without overlap (test_share 0) the interval is Student's
    hits = 0
    for _ in range(400):
        low, high = corrected_interval(list(rng.normal(0.6, 0.05, 5)), 0.0, 0.9) or (0, 0)
        hits += low < 0.6 < high
    assert 0.86 < hits / 400 < 0.94
    narrow, wide = (corrected_interval([0.5, 0.6, 0.7], share, 0.95) for share in (0.0, 0.25))
    assert narrow is not None
    assert wide is not None
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt((1 / 3 + 0.25) * 3))
    assert corrected_interval([0.5], 0.25, 0.95) is None
    # a common factor of both points cancels in their ratio
    below = [0.5, 0.6, 0.7]
    low, high = ratio_interval([0.8 * b for b in below], below, 0.25, 0.95) or (0, 0)
    assert (low, high) == pytest.approx((0.8, 0.8))
    assert wilson_interval(0.0, 10, 0.95) == pytest.approx((0.0, 0.2775), abs=1e-4)
