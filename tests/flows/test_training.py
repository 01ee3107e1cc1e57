"""Training: likelihood finds a known density, regression repairs what overfitting breaks, runs resume bit for bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from feynkac.flows.molecule_flow import InternalCoordinateFlow
from feynkac.flows.training import DrawBuffer, Frames, Phase, fit, regression_loss


class KnownTarget:
    """A molecule whose law is a rough flow over its internal coordinates: exact samples and exact energies."""

    kT = 2.5

    def __init__(self, coordinates, y, strength=0.12):
        self.flow = InternalCoordinateFlow.from_data(coordinates, y, hidden=8, seed=5)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in self.flow.density.networks.weight_out:
                parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))

    def frames(self, n, seed):
        y = self.flow.density.sample(n, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            energies = -self.flow.log_prob_internal(y) - self.flow.coordinates.log_jacobian(y)
        return Frames(y.float(), energies.float())

    def __call__(self, positions):
        return -self.kT * self.flow.log_prob(positions)


@pytest.fixture
def target(molecules, thermal):
    coordinates = molecules["methanol"]
    return KnownTarget(coordinates, thermal(coordinates, 500, torch.Generator().manual_seed(1)))


def start(target, data):
    return InternalCoordinateFlow.from_data(target.flow.coordinates, data.y, hidden=16, seed=2)


@pytest.mark.slow
def test_likelihood_and_regression_reach_the_target(target):
    data, held_out = target.frames(3000, 11), target.frames(1500, 12)
    flow = start(target, data)
    phases = [
        Phase(steps=150, learning_rate=3e-3, batch_size=128),
        Phase(steps=200, learning_rate=2e-3, batch_size=128, likelihood=0.1, data_regression=1.0, draw_regression=0.5),
    ]
    seen = []
    reports = fit(
        flow,
        data,
        phases=phases,
        seed=3,
        validation=held_out,
        energy=target,
        ess_draws=1024,
        evaluate_every=50,
        progress=seen.append,
    )
    assert seen == reports
    first = [r for r in reports if r.phase == 0]
    last = [r for r in reports if r.phase == 1]
    exact = -target.flow.log_prob_internal(held_out.y.double()).mean().item()
    start_nll = -start(target, data).log_prob_internal(held_out.y).mean().item()
    best = min(r.validation for r in last)
    assert best - exact < 0.65 * (start_nll - exact)
    assert max(r.ess for r in last) > max(r.ess for r in first) > 0.2
    assert min(r.residual for r in last) < min(r.residual for r in first)
    # it ends with the parameters of its best report
    assert -flow.log_prob_internal(held_out.y).mean().item() == pytest.approx(
        next(r.validation for r in reversed(reports) if r.best), abs=1e-4
    )


def test_a_stopped_run_goes_on_bit_for_bit(target, tmp_path):
    data = target.frames(1000, 11)
    phases = [
        Phase(steps=12, learning_rate=2e-3, batch_size=64),
        Phase(steps=12, learning_rate=1e-3, batch_size=64, likelihood=0.5, draw_regression=1.0),
    ]
    settings = {"phases": phases, "seed": 3, "energy": target, "evaluate_every": 6, "ess_draws": 0}
    settings |= {"augment": target.flow.coordinates.relabelled, "draws": DrawBuffer(capacity=128, draws=64, every=4)}
    whole = start(target, data)
    fit(whole, data, **settings)

    class Stop(Exception):
        pass

    def stop_after(count):
        def progress(report):
            if report.step >= count:
                raise Stop

        return progress

    for step in (12, 18, 24):
        with pytest.raises(Stop):
            fit(start(target, data), data, **settings, checkpoint=tmp_path / "state", progress=stop_after(step))
    resumed = start(target, data)
    fit(resumed, data, **settings, checkpoint=tmp_path / "state")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another 'seed'"):
        fit(start(target, data), data, **(settings | {"seed": 4}), checkpoint=tmp_path / "state")


def test_the_loss_is_half_the_variance_until_a_clash_comes():
    residual = torch.randn(512, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 40.0
    half_variance = 0.5 * residual.var(correction=0)
    assert regression_loss(residual, 10.0).item() == pytest.approx(half_variance.item(), rel=1e-6)
    clash = torch.cat([residual, torch.tensor([1e6], dtype=torch.float64)]).requires_grad_()
    (gradient,) = torch.autograd.grad(regression_loss(clash, 3.0), clash)
    assert gradient[-1].item() == pytest.approx(3.0 / 513)


def test_draws_without_a_usable_energy_count_as_clashes(target):
    """Infinite energies, energies beyond float32 and NaN neither stop the training nor pull without end."""

    class Clashing(KnownTarget):
        def __init__(self):
            self.flow = target.flow

        def __call__(self, positions):
            energy = super().__call__(positions).detach()
            energy[::10], energy[1::10], energy[2::10], energy[3::10] = torch.inf, 1e300, torch.nan, 1e30
            return energy

    data = target.frames(500, 11)
    flow = start(target, data)
    phase = Phase(steps=20, learning_rate=1e-3, batch_size=64, draw_regression=1.0)
    # the loss of 1e30 kJ/mol is bounded too: at most cap + noise, times the slope of the Huber loss
    reports = fit(flow, data, phases=[phase], seed=1, energy=Clashing(), draws=DrawBuffer(draws=100, every=10))
    assert reports[-1].n_nonfinite == 60
    assert reports[-1].train < 3.0 * 60.0
    assert all(bool(p.isfinite().all()) for p in flow.parameters())


def test_weights_shift_the_likelihood(target):
    data = target.frames(2000, 11)
    side = data.y[:, 0] > data.y[:, 0].median()
    weighted = Frames(data.y, log_weights=torch.where(side, 0.0, -30.0))
    flow = start(target, data)
    fit(flow, weighted, phases=[Phase(steps=150, learning_rate=5e-3, batch_size=128)], seed=1)
    y = flow.density.sample(500, generator=torch.Generator().manual_seed(2))
    assert (y[:, 0] > data.y[:, 0].median()).double().mean() > 0.8


def test_what_cannot_work_is_refused(target):
    data = target.frames(100, 11)
    flow = start(target, data)
    plain = Phase(steps=1, learning_rate=1e-3)
    replace = dataclasses.replace
    with pytest.raises(ValueError, match="data_regression needs"):
        fit(flow, Frames(data.y), phases=[replace(plain, data_regression=1.0)], seed=0)
    with pytest.raises(ValueError, match="draw_regression needs an energy"):
        fit(flow, data, phases=[replace(plain, draw_regression=1.0)], seed=0)
    with pytest.raises(ValueError, match="at least one term"):
        fit(flow, data, phases=[replace(plain, likelihood=0.0)], seed=0)
    mirrored = data.y.clone()
    mirrored[:10, -2:] *= -1
    with pytest.raises(ValueError, match="10 training frames lie outside"):
        fit(flow, Frames(mirrored), phases=[plain], seed=0)
    kept, dropped = Frames(mirrored, data.reduced_energies).inside(flow)
    assert dropped == 10
    assert len(kept.reduced_energies) == 90
