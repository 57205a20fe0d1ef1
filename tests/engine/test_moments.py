"""Reductions as monoids, their errors and their memory."""

import resource
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modegap.engine.batch import ActivationBatch, PairedBatch
from modegap.engine.certificate import Certificate
from modegap.engine.errors import EngineError, ValuesError
from modegap.engine.moments import ClassMoments, CrossMoments, Moments, ProjectionEnergy
from modegap.engine.moments.blocks import Block, BlockBuffer
from modegap.engine.moments.side import Side
from modegap.engine.reduction import Reduction
from modegap.engine.reduction_checks import _thirds, check_reduction, numbers

WIDTH, ROWS, BLOCK = 19, 700, 64
RNG = np.random.default_rng(0)
LABELS = RNG.integers(-1, 4, 70)
U = torch.from_numpy(RNG.standard_normal((WIDTH, 5)))
X = (RNG.standard_normal((ROWS, WIDTH)) * 10 ** RNG.uniform(-2, 1, WIDTH) + np.arange(WIDTH)).astype(
    np.float16
)
Y = (RNG.standard_normal((ROWS, 11)) + 5).astype(np.float16)

FACTORIES = {
    "moments": lambda mode: Moments(mode, 8, block_rows=BLOCK),
    "classes": lambda mode: ClassMoments(LABELS, 4, mode, 8, block_rows=BLOCK),
    "projection": lambda mode: ProjectionEnergy(U, mode, block_rows=BLOCK),
    "cross": lambda mode: CrossMoments(mode, 8, block_rows=BLOCK),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Blocks this small are not worth a thread; the kernels' tests use them all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(start, stop, scale=1.0, x=X, point="point"):
    sample = torch.arange(start, stop) // 10
    return ActivationBatch(torch.from_numpy(x[start:stop]), start, point, scale, sample)


def batches(name, edges, scales=(1.0,)):
    out = []
    for i, (start, stop) in enumerate(pairwise(edges)):
        scale = scales[i % len(scales)]
        batch = rows(start, stop, scale)
        out.append(PairedBatch(batch, rows(start, stop, 1.0, Y, "other")) if name == "cross" else batch)
    return out


def over(reduction, parts):
    for part in parts:
        reduction.update(part)
    return reduction


def close(found, want, rtol):
    found, want = numbers(found), numbers(want)
    assert found.keys() == want.keys()
    for name in want:
        size = np.nanmax(np.abs(want[name])) if want[name].size else 0
        np.testing.assert_allclose(found[name], want[name], rtol=0, atol=rtol * size, err_msg=name)


def split_pair(batch):
    if isinstance(batch, PairedBatch):
        return [PairedBatch(x, y) for x, y in zip(_thirds(batch.x), _thirds(batch.y), strict=True)]
    return _thirds(batch)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("mode", ["precise", "exact"])
def test_conformance(name, mode):
    factory = FACTORIES[name]
    assert isinstance(factory(mode), Reduction)
    parts = batches(name, [0, 33, 33, 170, 171, 400, 650, ROWS], scales=(1.0, 2.0, 1.0))
    check_reduction(
        lambda: factory(mode),
        parts,
        rtol=1e-10 if mode == "exact" else 3e-6,
        split=split_pair,
        bitwise_split=True,
    )


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_splits_change_no_bit(name, data):
    cuts = data.draw(st.lists(st.integers(0, ROWS), max_size=8))
    edges = sorted({0, ROWS, *cuts})
    whole = over(FACTORIES[name]("precise"), batches(name, [0, ROWS])).finalize()
    split = over(FACTORIES[name]("precise"), batches(name, edges)).finalize()
    found, want = numbers(split), numbers(whole)
    assert all(np.array_equal(found[key], want[key], equal_nan=True) for key in want)


@pytest.mark.parametrize("name", ["moments", "classes", "projection", "cross"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_partition_in_any_order(name, data):
    """Exact mode to 1e-10 for arbitrary partitions; mode precise within the accuracy contract."""
    cuts = data.draw(st.lists(st.integers(0, ROWS), min_size=1, max_size=5))
    parts = batches(name, sorted({0, ROWS, *cuts}))
    order = data.draw(st.permutations(range(len(parts))))
    for mode, tolerance in (("exact", 1e-10), ("precise", 3e-6)):
        whole = over(FACTORIES[name](mode), batches(name, [0, ROWS])).finalize()
        merged = FACTORIES[name](mode)
        for i in order:
            merged = merged.merge(over(FACTORIES[name](mode), [parts[i]]))
        close(merged.finalize(), whole, tolerance)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, ROWS // BLOCK), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_partitions_on_block_boundaries_agree_to_fp64(cuts, seed):
    """Workers made with fresh() after the first block share its shift, and then group products alike."""
    first = over(Moments(block_rows=BLOCK), [rows(0, BLOCK)])
    edges = sorted({BLOCK, ROWS, *(BLOCK * c for c in cuts if c > 1)})
    workers = [over(first.fresh(), [rows(a, b)]) for a, b in pairwise(edges)]
    np.random.default_rng(seed).shuffle(workers)
    for worker in workers:
        first = first.merge(worker)
    close(first.finalize(), over(Moments(block_rows=BLOCK), [rows(0, ROWS)]).finalize(), 1e-10)


def test_the_checks_catch_a_reduction_that_is_not_one():
    class Median:
        def __init__(self):
            self.parts = []

        def update(self, batch):
            self.parts.append(float(batch.x.median()))

        def merge(self, other):
            self.parts += other.parts
            return self

        def finalize(self):
            return float(np.mean(self.parts)) if self.parts else 0.0

        def fresh(self):
            return type(self)()

        def state_dict(self):
            return {"parts": torch.tensor(self.parts, dtype=torch.float64)}

        def load_state_dict(self, state):
            self.parts = state["parts"].tolist()

    with pytest.raises(AssertionError, match="split invariance"):
        check_reduction(Median, batches("moments", [0, 100, 350, ROWS]))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("name", FACTORIES)
def test_fewer_than_two_rows(name, n):
    reduction = over(FACTORIES[name]("precise"), batches(name, [10, 10 + n]))
    with pytest.raises(EngineError, match="at least 2"):
        reduction.finalize()


def test_two_rows_and_constant_channels():
    x = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]]).half()
    moments = Moments()
    moments.update(ActivationBatch(x, 0, "p"))
    result = moments.finalize()
    assert result.covariance.tolist() == [[2.0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert result.mean.tolist() == [2.0, 5.0, 0.0]
    assert result.std.tolist() == pytest.approx([2**0.5, 0.0, 0.0], rel=1e-15)
    assert result.audit_error == 0.0


def test_without_an_audit_nothing_is_claimed():
    result = over(Moments(audit_columns=0), [rows(0, 50)]).finalize()
    assert result.audit_error is result.certificate.audit_error is None
    assert len(result.audit_columns) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_point_row_and_sample(bad):
    moments = over(Moments(block_rows=BLOCK), [rows(0, 100)])
    x = X[100:200].copy()
    x[37, 4] = bad
    batch = replace(rows(100, 200), x=torch.from_numpy(x))
    with pytest.raises(EngineError, match=r"point: row 137 \(sample 13\) holds .* in channel 4"):
        moments.update(batch)
    over(moments, [rows(100, ROWS)])  # nothing of the bad batch was added
    close(moments.finalize(), over(Moments(block_rows=BLOCK), [rows(0, ROWS)]).finalize(), 0)


def test_a_bad_pair_changes_neither_side():
    reduction = CrossMoments(block_rows=BLOCK)
    good = batches("cross", [0, ROWS])[0]
    y = Y.copy()
    y[3] = np.inf
    with pytest.raises(EngineError, match="other: row 3"):
        reduction.update(PairedBatch(good.x, replace(good.y, x=torch.from_numpy(y))))
    reduction.update(good)
    close(reduction.finalize(), over(CrossMoments(block_rows=BLOCK), [good]).finalize(), 0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (ActivationBatch(torch.zeros(2, WIDTH + 1).half(), 0, "point"), "width: got 20, expected 19"),
        (ActivationBatch(torch.zeros(2, WIDTH), 0, "point"), "dtype: got torch.float32"),
        (ActivationBatch(torch.zeros(2, WIDTH).half(), 0, "elsewhere"), "point: got elsewhere"),
        (ActivationBatch(torch.zeros(2, WIDTH).half().to("meta"), 0, "point"), "device: got meta"),
    ],
)
def test_rows_that_do_not_belong_together(batch, message):
    moments = over(Moments(), [rows(0, 10)])
    with pytest.raises(ValueError, match=message):
        moments.update(batch)


@pytest.mark.parametrize("name", FACTORIES)
def test_rows_from_inference_mode(name):
    """Models run in it; what is accumulated there is continued, merged and finalized outside."""
    made = FACTORIES[name]("precise")
    with torch.inference_mode():
        over(made, batches(name, [0, 170]))
        worker = over(made.fresh(), batches(name, [170, 400]))
    made = over(made.merge(worker), batches(name, [400, ROWS]))
    with torch.inference_mode():
        found = made.finalize()
    close(found, over(FACTORIES[name]("precise"), batches(name, [0, ROWS])).finalize(), 3e-6)


def test_bad_configurations():
    for make, message in (
        (lambda: Moments("quick"), "mode: got 'quick'"),
        (lambda: Moments(audit_columns=-1), "audit_columns"),
        (lambda: Moments(block_rows=0), "block_rows"),
        (lambda: ClassMoments([0, 4], 4), "expected below 4"),
        (lambda: ProjectionEnergy(torch.zeros(3)), "expected a floating"),
        (lambda: Moments("exact").merge(Moments()), "mode is 'precise', expected 'exact'"),
        (lambda: ClassMoments([0, 1], 2).merge(ClassMoments([1, 0], 2)), "labels differ"),
        (lambda: ProjectionEnergy(U).merge(ProjectionEnergy(2 * U)), "directions U differ"),
        (
            lambda: over(Moments(), [rows(0, 5)]).load_state_dict(Moments("exact").state_dict()),
            "other options",
        ),
        (lambda: ClassMoments([0], 1).update(replace(rows(0, 5), sample=None)), "sample: got None"),
        (lambda: ClassMoments([0], 1).update(rows(0, 15)), "expected below 1 labels"),
        (lambda: ProjectionEnergy(U[:4]).update(rows(0, 5)), "got width 19, expected 4"),
        (lambda: PairedBatch(rows(0, 5), rows(0, 4)), "got 5 and 4 rows"),
        (lambda: PairedBatch(rows(0, 10), rows(10, 20)), "sample differs"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_finalized_reduction_is_spent():
    moments = over(Moments(), [rows(0, 50)])
    moments.finalize()
    for use in (moments.finalize, moments.state_dict, lambda: moments.update(rows(0, 5))):
        with pytest.raises(EngineError, match="finalized"):
            use()
    over(moments.fresh(), [rows(0, 50)]).finalize()


def test_rows_without_a_label_are_not_looked_at():
    x = X[:100].copy()
    x[:10] = np.nan
    labels = np.zeros(10, dtype=np.int64)
    labels[0] = -1
    reduction = ClassMoments(labels, 1)
    reduction.update(replace(rows(0, 100), x=torch.from_numpy(x)))
    assert reduction.finalize().count == 90


def test_states_are_small_where_nothing_was_seen_and_only_tensors():
    def leaves(state):
        for value in state.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    for factory in FACTORIES.values():
        assert all(torch.is_tensor(leaf) for leaf in leaves(factory("precise").state_dict()))
        factory("precise").load_state_dict(factory("precise").state_dict())
    assert sum(leaf.numel() for leaf in leaves(Moments().state_dict())) < 20


def test_certificate_round_trip():
    certificate = over(Moments(), [rows(0, 50)]).finalize().certificate
    facts = certificate.to_json()
    assert Certificate(**facts) == certificate
    assert facts["n_over_d"] == 50 / WIDTH
    assert torch.__version__.startswith(facts["versions"]["torch"].partition("+")[0])


def test_batch_helpers():
    batch = replace(rows(100, 110), row=torch.arange(200, 220, 2), scale=2.0)
    assert (len(batch), batch.width, batch.end, batch.global_row(3)) == (10, WIDTH, 110, 206)
    assert torch.equal(batch.values(), 2 * batch.x.float())
    with pytest.raises(ValueError, match="sample: got shape"):
        replace(batch, sample=torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected \[n, d\]"):
        ActivationBatch(torch.zeros(3), 0, "p")


def test_magnitudes_go_with_blocks_that_they_are_of():
    peak = torch.tensor([3.0, 1.0])
    buffer = BlockBuffer(4)
    assert [block.peak is peak for block in buffer.push(torch.ones(4, 2), 1.0, None, peak)] == [True]
    assert [block.peak for block in buffer.push(torch.ones(8, 2), 1.0, None, peak)] == [None, None]
    assert not list(buffer.push(torch.ones(3, 2), 1.0, None, peak))
    assert [block.peak for block in buffer.push(torch.ones(4, 2), 1.0, None, peak)] == [None]


def test_known_magnitudes_tell_outliers_as_those_taken_again():
    side = Side("precise")
    side.shift = torch.tensor([2.0, 0.0])
    near, far = torch.tensor([[2.5, 9.0]]).half(), torch.tensor([[30_000.0, 9.0]]).half()
    for x, outlying in ((near, False), (far, True)):
        runs = ((1, 1.0),)
        assert side._outlying(Block(x, runs, None)) is outlying
        assert side._outlying(Block(x, runs, None, x.abs().amax(0).float())) is outlying
        assert side._outlying(Block(x, runs, None, far[0].float())) is True


def test_memory_is_flat_over_many_batches():
    """RSS may grow by the accumulators, not with the rows."""
    width = 512
    x = torch.randn(700, width).half()
    moments = Moments()

    def peak(count):
        for i in range(count):
            moments.update(ActivationBatch(x, 700 * i, "p"))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    settled = peak(30)
    assert peak(150) - settled < 16_000  # kB; the rows are 107 MB


def test_squares_that_overflow_are_an_error_with_a_remedy() -> None:
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    x[3] = 1e30
    batch = ActivationBatch(x, 0, "adapter_output")
    moments = Moments()
    moments.update(batch)
    with pytest.raises(
        ValuesError, match=r"adapter_output: values up to 1e\+30, whose squares.*mode='exact'"
    ):
        moments.finalize()
    exact = Moments(mode="exact")
    exact.update(batch)
    torch.testing.assert_close(exact.finalize().covariance, x.double().T.cov(), rtol=1e-9, atol=0)
