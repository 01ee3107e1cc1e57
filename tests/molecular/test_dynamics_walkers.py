"""Laws, masses and the fate of walkers that leave the finite energies, with negative controls."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, Hills, RepulsionBias
from feynkac.molecular.dynamics import (
    BiasedEnergy,
    Langevin,
    LangevinState,
    ReplicaExchange,
    WalkerExploded,
    WalkerRetiredWarning,
    WalkersExploded,
    geometric_temperatures,
    melt,
    relax,
)
from feynkac.molecular.units import GAS_CONSTANT

from .toy_energies import KT, Along, Hole, PlanarEnergy, Springs, Wells, at, z_score

MASSES = (1.0, 4.0, 16.0)


class Louder(Langevin):
    """Negative control: noise one tenth too strong."""

    def _coefficients(self, state):
        push, decay, kick = super()._coefficients(state)
        return push, decay, 1.1 * kick


def run(dynamics, start, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return dynamics.step(generator, dynamics.init(generator, start), steps)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [12.0, MASSES], ids=["one mass", "a mass an atom"])
def test_springs_have_their_law_whatever_the_masses(mass):
    springs = Springs(2000.0, 4000.0, 8000.0)

    def scores(kind):
        state = run(kind(springs, 300.0, 0.01, 5.0, mass), torch.zeros(2000, 3, 3, dtype=torch.float64), 300)
        places = state.positions.square() * springs.stiffness[:, None] / KT
        weights = torch.as_tensor(mass, dtype=torch.float64).expand(3)
        speeds = state.velocities.square() * weights[:, None] / KT
        return [abs(z_score(squares[:, atom].flatten(), 1.0)) for squares in (places, speeds) for atom in range(3)]

    # positions are exact at any time step; velocities to second order in it, here 1 + (omega dt / 2)^2 at most
    assert max(scores(Langevin)[:3]) < 5
    assert min(scores(Louder)) > 5


def test_velocities_have_the_masses_they_were_given():
    springs = Springs(20.0, 20.0, 20.0)
    state = run(Langevin(springs, 300.0, 0.005, 5.0, MASSES), torch.zeros(4000, 3, 3, dtype=torch.float64), 600)
    squares = state.velocities.square().mean(dim=2)
    for atom, mass in enumerate(MASSES):
        assert abs(z_score(squares[:, atom], KT / mass)) < 5
        assert abs(z_score(squares[:, atom], KT / 12.0)) > 5


def test_masses_enter_the_motion_as_they_should():
    """Without friction energy is kept to second order in the time step, with the right masses only."""
    springs = Springs(2000.0, 4000.0, 8000.0)
    generator = torch.Generator().manual_seed(3)
    start = 0.03 * torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)

    def drift(time_step, masses=MASSES):
        dynamics = Langevin(springs, 300.0, time_step, 1e-15, MASSES)
        first = dynamics.init(torch.Generator().manual_seed(4), start)
        last = dynamics.step(torch.Generator().manual_seed(5), first, round(0.2 / time_step))
        weights = 0.5 * torch.tensor(masses, dtype=torch.float64)[:, None]
        total = [state.energy + (weights * state.velocities.square()).sum(dim=(1, 2)) for state in (first, last)]
        return float((total[1] - total[0]).abs().max())

    assert drift(0.0005) < 0.3 * drift(0.001)
    assert drift(0.0005) < 0.05
    assert drift(0.0005, masses=(12.0, 12.0, 12.0)) > 5.0


@pytest.mark.parametrize("region", [lambda x: x < 0, lambda x: x.abs() < 0.05], ids=["left", "barrier"])
def test_double_well_has_its_law(region):
    """Time averages against quadrature; walkers are independent."""
    wells = Wells(barrier=2.0, tilt=1.0)
    truth = wells.probability(region)

    def score(kind):
        dynamics = kind(PlanarEnergy(wells), 300.0, 0.01, 4.0)
        generator = torch.Generator().manual_seed(1)
        state = dynamics.step(generator, dynamics.init(generator, at(0.1, count=500)), 2000)
        inside = torch.zeros(500, dtype=torch.float64)
        for _ in range(200):
            state = dynamics.step(generator, state, 10)
            inside += region(state.positions[:, 0, 0]).double() / 200
        return z_score(inside, truth)

    assert abs(score(Langevin)) < 5
    if region(torch.zeros(1)):  # the barrier's population knows the temperature best
        assert abs(score(Louder)) > 5


def test_steps_may_be_split_over_calls():
    dynamics = Langevin(Springs(2000.0, 500.0), [300.0, 400.0, 500.0], 0.01, 5.0, (2.0, 7.0))
    start = torch.zeros(3, 2, 3)
    whole = run(dynamics, start, 20)
    generator = torch.Generator().manual_seed(1)
    state = dynamics.init(generator, start)
    for steps in (1, 7, 12):
        state = dynamics.step(generator, state, steps)
    assert all(torch.equal(value, state.state_dict()[name]) for name, value in whole.state_dict().items())
    assert state.steps == 20


def test_settings_that_do_not_fit_are_named():
    springs = Springs(1.0, 1.0)
    with pytest.raises(ValueError, match="mass: got 3 numbers, expected one, or one for each of 2 atoms"):
        run(Langevin(springs, 300.0, 0.01, 1.0, (1.0, 2.0, 3.0)), torch.zeros(4, 2, 3), 1)
    with pytest.raises(ValueError, match="temperatures: got 3 numbers, expected one, or one for each of 4 walkers"):
        run(Langevin(springs, [300.0] * 3, 0.01, 1.0), torch.zeros(4, 2, 3), 1)
    with pytest.raises(ValueError, match="mass"):
        Langevin(springs, 300.0, 0.01, 1.0, (1.0, -2.0))
    with pytest.raises(ValueError, match="on_explosion"):
        Langevin(springs, 300.0, 0.01, 1.0, on_explosion="ignore")


# --- walkers that leave the finite energies ---------------------------------------------------------------------------

LIMIT = 0.06  # nm: a little over one standard deviation of x


def retiring(energy, mass=12.0):
    return Langevin(energy, 300.0, 0.01, 5.0, mass, on_explosion="retire")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dead_lie_still_and_the_living_do_not_notice(dtype):
    springs = Springs(1000.0, 1000.0)
    start = torch.zeros(40, 2, 3, dtype=dtype)
    untouched = run(retiring(springs), start, 60)
    with pytest.warns(WalkerRetiredWarning, match=r"walker \d+ \(of \d+ such\) .* after \d+ steps and is retired"):
        state = run(retiring(Hole(springs, LIMIT)), start, 60)
    dead = ~state.alive
    assert 3 < state.n_retired < 37
    for name in ("positions", "velocities", "forces", "energy"):
        assert torch.equal(getattr(state, name)[state.alive], getattr(untouched, name)[state.alive])
    assert torch.equal(state.positions[dead], start[dead])
    assert not state.velocities[dead].any()
    assert not state.forces[dead].any()
    assert torch.isposinf(state.energy[dead]).all()
    # negative control: a batch without the dead gives the living other noise
    alone = run(retiring(springs), start[state.alive], 60)
    assert not torch.equal(alone.positions, state.positions[state.alive])


def test_the_dead_stay_dead_and_still_over_calls():
    springs, start = Springs(1000.0), torch.zeros(40, 1, 3, dtype=torch.float64)
    dynamics = retiring(Hole(springs, LIMIT))
    generator = torch.Generator().manual_seed(1)
    state = dynamics.init(generator, start)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states = [state]
        for _ in range(8):
            states.append(dynamics.step(generator, states[-1], 5))
    assert len(caught) == 1  # later ones are only counted
    retired = [now.n_retired for now in states]
    assert retired == sorted(retired)
    assert len(set(retired)) > 3
    for before, after in pairwise(states):
        assert not (after.alive & ~before.alive).any()
        dead = ~after.alive
        assert torch.equal(after.positions[dead], before.positions[dead])  # where the call found them
        assert all(torch.isfinite(field).all() for field in (after.positions, after.velocities, after.forces))


def test_non_finite_forces_are_caught_a_step_later():
    springs, start = Springs(1000.0), torch.zeros(40, 1, 3, dtype=torch.float64)
    untouched = run(retiring(springs), start, 60)
    with pytest.warns(WalkerRetiredWarning):
        state = run(retiring(Hole(Hole(springs, LIMIT, keep_rules=False), 1e9)), start, 60)
    assert 3 < state.n_retired < 37
    assert torch.equal(state.positions[state.alive], untouched.positions[state.alive])
    assert torch.isfinite(state.positions).all()
    assert torch.isfinite(state.velocities).all()


def test_a_bad_start_is_retired_or_refused():
    start = torch.zeros(4, 1, 3, dtype=torch.float64)
    start[1, 0, 0], start[2] = 1.0, torch.nan
    hole = Hole(Springs(1000.0), 0.9)
    with pytest.warns(WalkerRetiredWarning, match="walker 1 .*after 0 steps"):
        state = retiring(hole).init(torch.Generator().manual_seed(0), start)
    assert state.alive.tolist() == [True, False, False, True]
    assert torch.equal(state.positions[1:3], start[[0, 0]])
    with pytest.raises(WalkerExploded, match=r"walker 1 \(of 2 such\).*after 0 steps"):
        Langevin(hole, 300.0, 0.01, 5.0).init(torch.Generator().manual_seed(0), start)


@pytest.mark.filterwarnings("ignore::feynkac.molecular.dynamics.WalkerRetiredWarning")
def test_when_all_are_dead_the_run_ends():
    with pytest.raises(WalkersExploded, match=r"all 5 walkers .* after \d+ steps"):
        run(retiring(Hole(Springs(1000.0), 0.02)), torch.zeros(5, 1, 3), 2000)
    with pytest.raises(WalkerExploded, match=r"walker \d+ .* after \d+ steps"):
        run(Langevin(Hole(Springs(1000.0), LIMIT), 300.0, 0.01, 5.0), torch.zeros(5, 1, 3), 2000)


def test_a_state_survives_its_dictionary():
    with pytest.warns(WalkerRetiredWarning):
        state = run(retiring(Hole(Springs(1000.0), LIMIT)), torch.zeros(20, 1, 3), 30)
    again = LangevinState.from_state_dict(state.state_dict())
    assert again.steps == 30
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.state_dict().items())


def test_strained_starts_relax_and_melt():
    """At the full step the spring throws its atom out; relaxed first, it does not."""
    stiff = Hole(Springs(1e5), 2.0)
    start = at(1.0, count=4)
    with pytest.raises(WalkerExploded):
        run(Langevin(stiff, 300.0, 0.03, 1.0), start, 200)
    generator = torch.Generator().manual_seed(1)
    relaxed = relax(stiff, start, generator, temperature=300.0, time_step=0.02)
    assert relaxed.positions.abs().max() < 0.2
    seen = []
    hot = Langevin(stiff, 900.0, 0.02, 1.0)
    state = melt(hot, relaxed.positions, generator, length=6.0, progress=lambda done, total: seen.append((done, total)))
    assert state.steps == 300
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- replica exchange -------------------------------------------------------------------------------------------------


def test_exchange_passes_the_dead_by():
    exchange = ReplicaExchange(
        Hole(Springs(1000.0), LIMIT), [300.0, 350.0, 400.0], 40, 5, 0.01, 5.0, on_explosion="retire"
    )
    generator = torch.Generator().manual_seed(2)
    state = exchange.init(generator, torch.zeros(1, 3, dtype=torch.float64))
    with pytest.warns(WalkerRetiredWarning):
        states = [now for now, _ in exchange.run(generator, state, 20)]
    rungs = [now.walkers.alive.reshape(40, 3) for now in states]
    assert not rungs[-1].all()
    for before, after in pairwise(states):
        dead = ~before.walkers.alive
        assert not after.walkers.alive[dead].any()  # a rung once empty stays empty
        assert torch.equal(after.replica.flatten()[dead], before.replica.flatten()[dead])


def test_all_noise_comes_from_the_device_of_the_generator(monkeypatch):
    """So that one generator serves walkers on any device: each draw is asked where it is made."""
    seen = []

    def watched(draw):
        def wrapped(*args, generator, device=None, **options):
            seen.append(device == generator.device)
            return draw(*args, generator=generator, device=device, **options)

        return wrapped

    monkeypatch.setattr(torch, "rand", watched(torch.rand))
    monkeypatch.setattr(torch, "randn", watched(torch.randn))
    exchange = ReplicaExchange(Springs(1000.0), [300.0, 350.0], 4, 5, 0.01, 5.0)
    generator = torch.Generator().manual_seed(2)
    exchange.sweep(generator, exchange.init(generator, torch.zeros(1, 3, dtype=torch.float64)))
    assert seen == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_one_generator_serves_walkers_on_a_device(place):
    exchange = ReplicaExchange(Springs(1000.0), [300.0, 350.0], 40, 5, 0.01, 5.0)

    def run(generator, device):
        start = exchange.init(generator, torch.zeros(1, 3, dtype=torch.float64, device=device))
        return list(exchange.run(generator, start, 4))[-1]

    state, info = run(torch.Generator(place).manual_seed(2), "cuda")
    assert info.positions.device.type == "cuda"
    assert not torch.equal(state.replica, torch.arange(80).reshape(40, 2))
    if place == "cpu":  # the same noise as on the CPU
        here, _ = run(torch.Generator().manual_seed(2), "cpu")
        assert torch.allclose(here.walkers.positions, state.walkers.positions.cpu(), atol=1e-9)


@pytest.mark.slow
def test_exchange_over_a_biased_energy():
    """A static bias, weighed out at the lowest temperature; masses of the atom do not matter."""
    wells = Wells(barrier=8.0, tilt=2.0)
    variable = BiasVariable("x", sigma=0.04, unit="nm")
    empty = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=8.0, height=1.0, grid=[GridAxis(-0.3, 0.3, 100)])
    hill = torch.tensor([[-0.1]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    bias = empty.with_hills(Hills(hill, torch.full((1, 1), 0.04, dtype=torch.float64), 4.0 * one, one))
    target = BiasedEnergy(PlanarEnergy(wells), [Along("x")], bias)
    temperatures = geometric_temperatures(300.0, 1200.0, 4)
    exchange = ReplicaExchange(target, temperatures, 150, 20, 0.005, 4.0, mass=[5.0])
    generator = torch.Generator().manual_seed(3)
    state = exchange.init(generator, torch.tensor([[0.1, 0.0, 0.0]], dtype=torch.float64))
    inside, log_weights = [], []
    for count, (_, info) in enumerate(exchange.run(generator, state, 400)):
        if count >= 150:
            inside.append(info.positions[:, 0, 0] < 0)
            log_weights.append(target.terms(info.positions).bias / KT)
    left, weights = torch.stack(inside), torch.stack(log_weights).exp()
    truth = wells.probability_left()
    assert abs(z_score((weights * (left.double() - truth)).mean(dim=0), 0.0)) < 5
    assert abs(z_score((left.double() - truth).mean(dim=0), 0.0)) > 5  # negative control: the bias left in
    assert math.isclose(GAS_CONSTANT * temperatures[0], KT)
