"""Adapters pass the public self-tests; wrong ones fail them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from feynkac.fkc.testing.conformance import ConformanceError
from feynkac.flows import FunctionProposal, InternalCoordinateFlow, ProposalFacts, conformance
from feynkac.flows.conformance import check_proposal

EUCLIDEAN = ProposalFacts("euclidean", "1", "exact")
MIX = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)


def sample(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=torch.float64) @ MIX.T


def log_prob(x):
    z = torch.linalg.solve_triangular(MIX, x.double().T, upper=False)
    return -0.5 * z.square().sum(0) - MIX.diagonal().log().sum() - math.log(2 * math.pi)


def proposal(sample=sample, log_prob=log_prob, **options):
    return FunctionProposal(sample, log_prob, event_shape=(2,), facts=EUCLIDEAN, **options)


def test_torch_functions_pass():
    check_proposal(proposal(), seed=1, tolerance=1e-9)


def test_numpy_and_global_streams_pass():
    class Numpy:
        def sample(self, n, rng):
            return rng.normal(size=(n, 2))

        def log_prob(self, x):
            assert isinstance(x, np.ndarray)
            return -0.5 * (x**2).sum(-1) - math.log(2 * math.pi)

    adapted = FunctionProposal.of(Numpy(), event_shape=(2,), facts=EUCLIDEAN, stream="numpy")
    check_proposal(adapted, seed=1, tolerance=1e-9, gradient=False)
    model = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    careless = FunctionProposal(
        lambda n: model.sample((n,)), model.log_prob, event_shape=(2,), facts=EUCLIDEAN, stream="global"
    )
    check_proposal(careless, seed=1, tolerance=1e-3, gradient=False)


def test_zuko_flows_and_distributions_pass():
    zuko = pytest.importorskip("zuko")
    from feynkac.flows import ZukoProposal

    with torch.random.fork_rng():
        torch.manual_seed(3)
        flow = zuko.flows.NSF(features=6, transforms=2, hidden_features=(16, 16)).double()
        other = zuko.flows.NSF(features=6, transforms=2, hidden_features=(16, 16)).double()
    adapted = ZukoProposal(flow, facts=EUCLIDEAN, event_shape=(2, 3))
    assert adapted.event_shape == (2, 3)
    check_proposal(adapted, seed=1, n=500, tolerance=1e-9)
    assert adapted.facts.fingerprint != ZukoProposal(other, facts=EUCLIDEAN).facts.fingerprint
    check_proposal(ZukoProposal(flow.float(), facts=EUCLIDEAN), seed=1, n=500, tolerance=1e-3, gradient=False)
    normal = zuko.distributions.DiagNormal(torch.zeros(3), torch.ones(3))
    check_proposal(ZukoProposal(normal, facts=EUCLIDEAN), seed=1, n=500, tolerance=1e-3, gradient=False)
    with pytest.raises(TypeError, match="zuko flow"):
        ZukoProposal("flow", facts=EUCLIDEAN)
    with pytest.raises(ValueError, match="do not fill"):
        _ = ZukoProposal(flow, facts=EUCLIDEAN, event_shape=(5,)).sample_and_log_prob(1, generator=torch.Generator())


def test_a_missing_zuko_names_the_extra(monkeypatch):
    import sys

    from feynkac.flows import ZukoProposal

    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setitem(sys.modules, "zuko.lazy", None)
    with pytest.raises(ImportError, match=r"feynkac\[molecular\]"):
        ZukoProposal(None, facts=EUCLIDEAN)


def test_the_molecular_flow_passes(molecules, thermal):
    """The test density is a narrower flow of the same kind, normalised in the same measure."""
    for name in ("water", "methanol"):
        coordinates = molecules[name]
        flow = InternalCoordinateFlow.from_data(
            coordinates, thermal(coordinates, 500, torch.Generator().manual_seed(1)), hidden=8
        )
        narrow = InternalCoordinateFlow.from_data(
            coordinates, flow.density.sample(2000, generator=torch.Generator().manual_seed(2)), hidden=8
        )
        with torch.no_grad():
            narrow.density.networks.bias_out[-1][:, 1] += math.log(0.8)
        check_proposal(flow.double(), seed=3, n=1000, tolerance=1e-9, test_log_density=narrow.double().log_prob)


def test_a_wrong_jacobian_fails():
    """Negative control: log q off by a constant, in both methods alike, passes the round trip but is not normalised."""
    wrong = proposal(log_prob=lambda x: log_prob(x) + 0.05)
    conformance.check_round_trip(wrong, seed=1, n=100, tolerance=1e-9)
    with pytest.raises(ConformanceError, match="not normalised"):
        check_proposal(wrong, seed=1, tolerance=1e-9)
    scaled = proposal(log_prob=lambda x: log_prob(1.1 * x))
    with pytest.raises(ConformanceError, match="not normalised"):
        check_proposal(scaled, seed=1, tolerance=1e-9)


class Mismatch(FunctionProposal):
    """Draws with one set of parameters, density of another (EMA against raw)."""

    def sample_and_log_prob(self, n, *, generator, context=None):
        x, log_q = super().sample_and_log_prob(n, generator=generator)
        return x, log_q + 0.01 * x[:, 0]


def test_other_defects_fail():
    with pytest.raises(ConformanceError, match="log_prob differs by"):
        check_proposal(Mismatch(sample, log_prob, event_shape=(2,), facts=EUCLIDEAN), seed=1, tolerance=1e-9)
    hidden = torch.Generator().manual_seed(5)
    with pytest.raises(ConformanceError, match="same seed"):
        check_proposal(proposal(sample=lambda n, g: sample(n, hidden)), seed=1, tolerance=1e-9)
    with pytest.raises(ConformanceError, match="does not advance"):
        check_proposal(
            proposal(sample=lambda n, g: sample(n, torch.Generator().manual_seed(g.initial_seed()))),
            seed=1,
            tolerance=1e-9,
        )
    with pytest.raises(ConformanceError, match="global generator"):
        check_proposal(proposal(sample=lambda n, g: torch.randn(n, 2).double()), seed=1, tolerance=1e-9)
    crowded = proposal(log_prob=lambda x: log_prob(x) + 1e-3 * len(x) / 2000)
    with pytest.raises(ConformanceError, match="chunks of 1"):
        conformance.check_chunks(crowded, seed=1, tolerance=1e-9)
    with pytest.raises(ConformanceError, match="gradient"):
        conformance.check_gradient(proposal(log_prob=lambda x: log_prob(x.detach())), seed=1)
    broken = proposal(log_prob=lambda x: log_prob(x) + (x - x.detach()).sum(-1))
    with pytest.raises(ConformanceError, match="central differences"):
        conformance.check_gradient(broken, seed=1)
    with pytest.raises(ConformanceError, match="too unlike"):
        conformance.check_normalisation(proposal(), seed=1, n=500, test_log_density=lambda x: log_prob(x - 6.0))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"sample returned shape \(5, 3\)"):
        proposal(sample=lambda n, g: torch.zeros(n, 3)).sample_and_log_prob(5, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"log_prob returned shape \(\) for 5"):
        proposal(log_prob=lambda x: x.sum()).log_prob(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="stream must be"):
        proposal(stream="clock")
    with pytest.raises(ValueError, match="no context"):
        proposal().log_prob(torch.zeros(5, 2), context=torch.zeros(1))
