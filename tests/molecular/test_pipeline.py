"""The chain from weighted draws to free energies, against closed forms and the functions it is made of."""

import math

import pytest
import torch

from feynkac.fkc.weights import effective_sample_size
from feynkac.molecular.cvs import Distance, Torsion
from feynkac.molecular.free_energy import Axis, Region, free_energy_difference
from feynkac.molecular.pipeline import (
    AnalysisRequest,
    DifferenceRequest,
    SurfaceRequest,
    WeightedDraws,
    analyse,
    evaluate_variables,
)

KT = 2.494


def draws(n: int = 20000, seed: int = 0) -> WeightedDraws:
    """Uniform angles weighted to the density exp(cos(phi - 1)): log Z = log(2 pi I0(1))."""
    generator = torch.Generator().manual_seed(seed)
    phi = (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1) * math.pi
    energies = -KT * torch.cos(phi - 1)
    log_q = torch.full((n,), -math.log(2 * math.pi), dtype=torch.float64)
    return WeightedDraws(
        log_weights=-energies / KT - log_q, log_q=log_q, energies=energies, variables={"phi": phi}, kT=KT
    )


REQUEST = AnalysisRequest(
    surface=SurfaceRequest(axes=(Axis.torsion("phi", 30),), bootstrap=50),
    profiles=(SurfaceRequest(axes=(Axis.torsion("phi", 20),), bootstrap=50),),
    difference=DifferenceRequest(variable="phi", region=Region(0.0, 2.0, 2 * math.pi), bootstrap=200),
    seed=4,
)


def test_closed_forms():
    result = analyse(draws(), REQUEST)
    z = (result.log_evidence - math.log(2 * math.pi * 1.2660658777520084)) / result.log_evidence_std_error
    assert abs(z) < 5
    # ESS fraction: (mean w)^2 / mean w^2 = I0(1)^2 / I0(2)
    assert result.ess_fraction == pytest.approx(1.2660658777520084**2 / 2.2795853023360673, rel=0.02)
    assert result.khat < 0.5
    assert result.ess_smoothed == pytest.approx(result.ess, rel=0.02)
    x = torch.linspace(-math.pi, math.pi, 200001, dtype=torch.float64)
    p = torch.exp(torch.cos(x - 1))
    inside = (x > 0) & (x < 2)
    truth = math.log(float(p[~inside].sum() / p[inside].sum()))
    for difference in (result.difference, result.difference_smoothed):
        assert difference is not None
        assert abs(difference.value - truth) < 5 * difference.std_error
    assert result.n_zero_weight == 0
    assert [profile.axes[0].name for profile in result.profiles] == ["phi"]


def test_running_estimates_end_at_the_final_ones():
    sample = draws(5000)
    running = analyse(sample, REQUEST).running
    inside = REQUEST.difference.region.contains(sample.variables["phi"])
    for k in (len(running.samples) // 2, -1):
        n = int(running.samples[k])
        direct = free_energy_difference(inside[:n], sample.log_weights[:n], kT=KT, bootstrap=0)
        assert float(running.difference[k]) == pytest.approx(direct.value)
        assert float(running.std_error[k]) == pytest.approx(direct.std_error_delta * math.sqrt((n - 1) / n))
        assert float(running.ess[k]) == pytest.approx(float(effective_sample_size(sample.log_weights[:n])))
    assert int(running.samples[-1]) == 5000


def test_equal_input_gives_equal_bits():
    first, again = analyse(draws(3000), REQUEST), analyse(draws(3000), REQUEST)
    assert first.difference == again.difference
    assert torch.equal(first.surface.std_error, again.surface.std_error)
    assert torch.equal(first.smoothed_log_weights, again.smoothed_log_weights)


def test_zero_weights_are_counted_and_change_nothing_else():
    sample = draws(3000)
    log_weights = torch.cat([sample.log_weights, torch.full((7,), -math.inf, dtype=torch.float64)])
    nan = torch.full((7,), math.nan, dtype=torch.float64)
    padded = WeightedDraws(
        log_weights=log_weights,
        log_q=torch.cat([sample.log_q, nan]),
        energies=torch.cat([sample.energies, nan]),
        variables={"phi": torch.cat([sample.variables["phi"], nan])},
        kT=KT,
    )
    first, second = analyse(sample, REQUEST), analyse(padded, REQUEST)
    assert second.n_zero_weight == 7
    assert second.difference.value == pytest.approx(first.difference.value, abs=1e-12)
    torch.testing.assert_close(second.surface.free_energy, first.surface.free_energy)
    assert second.log_evidence == pytest.approx(first.log_evidence + math.log(3000 / 3007))


def test_variables_are_evaluated_by_name_in_chunks():
    positions = torch.randn(25, 4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    variables = [Torsion(0, 1, 2, 3, name="phi"), Distance(0, 3, name="d")]
    values = evaluate_variables(variables, positions, chunk_size=10)
    assert list(values) == ["phi", "d"]
    assert torch.equal(values["d"], variables[1](positions.detach()).double())
    assert not values["phi"].requires_grad


def test_an_unknown_variable_is_named():
    request = AnalysisRequest(
        surface=None,
        profiles=(),
        difference=DifferenceRequest(variable="psi", region=Region(0.0, 1.0), bootstrap=10),
        seed=0,
    )
    with pytest.raises(ValueError, match="no variable 'psi' among the draws; there are phi"):
        analyse(draws(100), request)
