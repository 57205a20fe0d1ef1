import pytest
import torch

from modegap import kernels
from modegap.kernels import dispatch


@pytest.fixture
def operation(monkeypatch):
    monkeypatch.setattr(dispatch, "_registry", {})
    monkeypatch.setattr(dispatch, "_last", {})

    def add(name, reason):
        @dispatch.register("op", name, supports=lambda *_: reason)
        def call(*_):
            return name

    return add


def test_the_order_of_registration_does_not_matter(operation):
    operation("reference", "oracle")
    operation("triton", "sm_90")
    operation("cpu", "host")
    result, path = dispatch.run("op", "modegap.kernels", 1)
    assert result == path.name == "triton"
    assert path.why == "sm_90"
    assert kernels.last_path("op") == path == kernels.paths()["op"]


def test_a_path_that_does_not_support_the_arguments_is_passed_over(operation):
    operation("reference", "oracle")
    operation("triton", None)
    assert dispatch.run("op", "modegap.kernels", 1)[0] == "reference"


def test_a_name_of_ones_own_comes_first_and_registering_again_replaces(operation):
    operation("triton", "sm_90")
    operation("mine", "better")
    assert dispatch.run("op", "modegap.kernels", 1)[0] == "mine"
    operation("mine", None)
    assert dispatch.run("op", "modegap.kernels", 1)[0] == "triton"


def test_reference_can_be_forced(monkeypatch):
    x = torch.randn(40, 6, dtype=torch.float32)
    gram = torch.zeros(6, 6, dtype=torch.float64)
    assert kernels.covariance_update(x, gram).name == "cpu"
    monkeypatch.setenv("MODEGAP_KERNELS", "reference")
    path = kernels.covariance_update(x, gram.zero_())
    assert (path.name, path.why) == ("reference", "forced by MODEGAP_KERNELS")
    torch.testing.assert_close(gram, x.double().T @ x.double(), rtol=1e-14, atol=0)
    monkeypatch.setenv("MODEGAP_KERNELS", "fastest")
    with pytest.raises(ValueError, match="expected 'reference' or unset"):
        kernels.covariance_update(x, gram)
