"""Metadynamics: what a deposit does, exact resumption, retired walkers, and the driver of a whole run."""

import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, Hills, RepulsionBias, UpperWall
from feynkac.fkc.checkpoint import load_state, save_state
from feynkac.molecular.cvs import CallableVariable
from feynkac.molecular.dynamics import (
    Collector,
    Metadynamics,
    MetadynamicsSettings,
    MetadynamicsState,
    Restrained,
    WalkerRestartedWarning,
    WalkerRetiredWarning,
    WalkersExploded,
    follow,
    metadynamics,
    prepare,
)

from .toy_energies import KT, Along, Hole, PlanarEnergy, Wells, X, Y, at

VARIABLE = BiasVariable("x", 0.02, unit="nm")
AXIS = GridAxis(-0.25, 0.25, 125)


def well_tempered():
    return RepulsionBias.well_tempered([VARIABLE], kT=KT, bias_factor=8.0, height=4.0, grid=[AXIS])


def opes():
    return RepulsionBias.opes([VARIABLE], kT=KT, barrier=8.0 * KT)


KINDS = {"well-tempered": well_tempered, "opes": opes}


def method(energy=None, bias=None, **options):
    chosen = {"temperature": 300.0, "time_step": 0.005, "friction": 5.0, "pace": 10} | options
    variables = chosen.pop("variables", [X])
    return Metadynamics(energy or PlanarEnergy(Wells()), variables, bias or well_tempered(), **chosen)


SETTINGS = MetadynamicsSettings(
    walkers=12, fill_ps=0.4, burn_in_ps=0.1, production_ps=0.3, time_step=0.005, friction=5.0, pace=10, record_steps=5
)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# --- deposits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_deposit_changes_energies_and_forces_without_a_call(kind):
    energy = PlanarEnergy(Wells())
    run = method(energy, KINDS[kind](), pace=7)
    noise = generator()
    start = run.init(noise, at(0.1, count=15))
    for state, record in run.fill(noise, start, 4):  # noqa: B007
        fresh = run.biased(state.bias).energy_and_forces(state.walkers.positions)
        assert torch.allclose(state.walkers.energy, fresh.energy, rtol=1e-12)
        assert torch.allclose(state.walkers.forces, fresh.forces, atol=1e-9)
        stale = run.biased(start.bias).energy_and_forces(state.walkers.positions)
        assert not torch.allclose(state.walkers.forces, stale.forces, atol=1.0)
    assert state.deposits == 4
    assert state.steps == 28
    calls = energy.n_calls - 2 * 4 * 15  # those of this test
    assert calls == 15 * (1 + 28)


def test_records_show_what_the_walkers_felt():
    run = method()
    noise = generator()
    start = run.init(noise, at(0.1, count=15))
    before = start.bias
    for state, record in run.fill(noise, start, 5):
        values = record.values
        assert torch.equal(values[:, 0], state.walkers.positions[:, 0, 0])
        assert torch.equal(record.bias, before(values))
        assert record.rct == before.rct()
        assert torch.equal(record.log_weights, (record.bias - record.rct) / KT)
        assert record.time == pytest.approx(0.05 * state.deposits)
        assert not record.frozen
        assert torch.allclose(record.energy, run.energy(state.walkers.positions))
        assert len(record.hills) == 1
        assert torch.equal(record.hills[0].centers, values)
        assert torch.equal(record.hills[0].times, torch.full((15,), record.time, dtype=torch.float64))
        before = state.bias
    for now, record in run.produce(noise, state, 3, record_every=4):
        assert now.bias is state.bias
        assert record.frozen
        assert torch.equal(record.log_weights, state.bias.reweight(record.values))
        assert record.hills == ()
    assert now.steps == 5 * 10 + 3 * 4


def test_hills_of_all_records_make_the_bias_again():
    run = method()
    noise = generator()
    records = list(run.fill(noise, run.init(noise, at(0.1, count=15)), 7, record_every=30))
    assert [len(record.hills) for _, record in records] == [3, 3, 1]
    hills = [hill for _, record in records for hill in record.hills]
    joined = Hills(
        *(torch.cat([getattr(h, name) for h in hills]) for name in ("centers", "widths", "heights", "times"))
    )
    points = AXIS.nodes()[:, None]
    assert torch.allclose(well_tempered().with_hills(joined)(points), records[-1][0].bias(points), atol=1e-12)


def test_hills_without_a_grid_need_points_for_their_weights():
    no_grid = RepulsionBias.well_tempered([VARIABLE], kT=KT, bias_factor=8.0, height=4.0)
    runs = [method(), method(bias=no_grid), method(bias=no_grid, rct_points=AXIS.nodes()[:, None])]
    last = []
    for run in runs:
        noise = generator()
        last.append(list(run.fill(noise, run.init(noise, at(0.1, count=15)), 3))[-1][1])
    assert last[2].rct == pytest.approx(last[0].rct, abs=1e-3)
    assert torch.allclose(last[2].log_weights, last[0].log_weights, atol=1e-2)
    assert math.isnan(last[1].rct)
    assert torch.isnan(last[1].log_weights).all()  # not a number rather than a wrong one


def test_restraints_are_felt_and_reported():
    wall = Restrained(Y, UpperWall(-0.05, 400.0), "wall")
    energy = PlanarEnergy(Wells())
    run = method(energy, restraints=[wall])
    noise = generator()
    for state, record in run.fill(noise, run.init(noise, at(0.1, count=30)), 10):  # noqa: B007
        pass
    assert record.restraints.keys() == {"wall"}
    assert torch.equal(record.restraints["wall"], wall.wall.value_and_gradient(Y(record.positions))[0])
    assert torch.allclose(record.energy, energy(record.positions))
    felt = run.biased(None).energy_and_forces(record.positions)
    assert torch.allclose(felt.energy, record.energy + record.restraints["wall"])


# --- resumption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [3, 9, 15], ids=["filling", "burn-in", "sampling"])
def test_stopped_and_resumed_is_never_stopped(kind, stop, tmp_path):
    def fresh():
        return SETTINGS.method(PlanarEnergy(Wells()), [X], KINDS[kind]())

    noise = generator()
    whole = list(follow(fresh(), SETTINGS, noise, prepare(fresh(), at(0.1, count=12), SETTINGS, noise)))

    noise = generator()
    stages = follow(fresh(), SETTINGS, noise, prepare(fresh(), at(0.1, count=12), SETTINGS, noise))
    for _ in range(stop):
        step = next(stages)
    save_state(tmp_path, {"generator": noise.get_state(), **step.state.state_dict()}, {"stage": step.stage})

    tensors, meta = load_state(tmp_path)
    noise = torch.Generator()
    noise.set_state(tensors.pop("generator"))
    rest = list(follow(fresh(), SETTINGS, noise, MetadynamicsState.from_state_dict(tensors)))
    assert meta["stage"] == whole[stop - 1].stage
    assert [step[:3] for step in rest] == [step[:3] for step in whole[stop:]]
    for ours, theirs in zip(rest, whole[stop:], strict=True):
        assert torch.equal(ours.record.values, theirs.record.values)
        assert torch.equal(ours.record.log_weights, theirs.record.log_weights)
    assert same(rest[-1].state.state_dict(), whole[-1].state.state_dict())
    # negative control: other noise
    other = list(follow(fresh(), SETTINGS, generator(9), MetadynamicsState.from_state_dict(tensors)))
    assert not same(other[-1].state.state_dict(), whole[-1].state.state_dict())


@pytest.mark.parametrize("stop", [2, 9, 15], ids=["filling", "burn-in", "sampling"])
def test_a_result_is_the_same_after_a_kill(stop, tmp_path):
    """State, generator and what was gathered go into one checkpoint; another process goes on from it."""
    wall = Restrained(Y, UpperWall(0.02, 100.0), "wall")
    settings = replace(SETTINGS, positions_every=3)

    def run(noise, state, collector, records=None):
        method = settings.method(PlanarEnergy(Wells()), [X], well_tempered(), [wall])
        state = prepare(method, at(0.1, count=12), settings, noise) if state is None else state
        for count, step in enumerate(follow(method, settings, noise, state), start=1):
            state = step.state
            collector.add(step.stage, step.record)
            if count == records:
                tensors = {**state.state_dict(), **collector.state_dict(), "generator": noise.get_state()}
                save_state(tmp_path, tensors, {})
                break
        return collector.result(state, energy_calls=7, expected=settings.records)

    whole = run(generator(), None, Collector(3))
    cut = run(generator(), None, Collector(3), stop)
    assert not cut.complete

    tensors, _ = load_state(tmp_path)
    noise = torch.Generator()
    noise.set_state(tensors["generator"])
    found = run(noise, MetadynamicsState.from_state_dict(tensors), Collector.from_state_dict(tensors))
    assert found.complete
    for name in ("time", "values", "bias", "log_weights", "alive", "energy", "positions", "position_records"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    for name in ("time", "values", "bias", "rct", "alive", "approximate_log_weights"):
        assert torch.equal(getattr(found.filling, name), getattr(whole.filling, name)), name
    assert torch.equal(found.restraints["wall"], whole.restraints["wall"])
    assert same(found.state.state_dict(), whole.state.state_dict())
    # negative control: without what was gathered before the kill
    lost = run(noise, MetadynamicsState.from_state_dict(tensors), Collector(3))
    assert len(lost.time) + len(lost.filling.time) < len(whole.time) + len(whole.filling.time)


def test_records_do_not_hold_the_positions():
    run, noise, collector = method(), generator(), Collector(positions_every=2)
    state = run.init(noise, at(0.1, count=500))
    for filled, record in run.fill(noise, state, 3):  # noqa: B007
        collector.add("fill", record)
    for sampled, record in run.produce(noise, filled, 4):  # noqa: B007
        collector.add("sample", record)
    assert record.positions.untyped_storage().nbytes() == 500 * 3 * 8
    held = [r.positions.untyped_storage().nbytes() for r in (*collector._fill, *collector._sample)]
    assert held == [0] * 7
    assert collector.result(sampled, energy_calls=0, expected=4).positions.shape == (2, 500, 1, 3)


# --- retired walkers --------------------------------------------------------------------------------------------------


def retiring_run(limit=0.13, **options):
    run = method(Hole(PlanarEnergy(Wells()), limit), **options)
    noise = generator()
    return run, noise, run.init(noise, at(0.1, count=20))


def test_the_retired_deposit_nothing_and_weigh_nothing():
    run, noise, state = retiring_run()
    with pytest.warns(WalkerRetiredWarning):
        filled = list(run.fill(noise, state, 20))
    state, records = filled[-1][0], [record for _, record in filled]
    assert 2 < state.walkers.n_retired < 18
    for record in records:
        assert len(record.hills[0]) == int(record.alive.sum())
        assert torch.equal(torch.isneginf(record.log_weights), ~record.alive)
        assert torch.equal(torch.isposinf(record.energy), ~record.alive)
        assert torch.isfinite(record.positions).all()
        assert torch.isfinite(record.values).all()
        assert torch.isfinite(record.bias).all()
    assert state.bias.counts.invalid == 0
    dead = ~state.walkers.alive
    for now, record in run.produce(noise, state, 5):
        assert torch.equal(now.walkers.positions[dead], state.walkers.positions[dead])
        assert torch.isneginf(record.log_weights[dead]).all()
        assert torch.isfinite(now.walkers.forces).all()


class Failing(Along):
    """x, but not a number beyond 0.12 nm."""

    def __call__(self, positions):
        x = positions[:, 0, 0]
        return torch.where(x > 0.12, torch.nan, x)


def test_a_variable_that_fails_retires_its_walker_only():
    noise = generator()
    run = method()
    untouched = list(run.produce(noise, run.init(noise, at(0.1, count=20)), 20))[-1][0].walkers
    noise = generator()
    run = replace(run, variables=[Failing("x")])
    with pytest.warns(WalkerRetiredWarning):
        state, record = list(run.produce(noise, run.init(noise, at(0.1, count=20)), 20))[-1]
    alive = state.walkers.alive
    assert 2 < state.walkers.n_retired < 18
    assert torch.equal(state.walkers.positions[alive], untouched.positions[alive])
    assert torch.isfinite(record.values).all()
    assert torch.equal(torch.isneginf(record.log_weights), ~alive)


def test_a_variable_without_any_finite_value_is_named_before_anything_runs():
    energy = PlanarEnergy(Wells())
    lost = CallableVariable(lambda x: torch.sqrt(x[:, 0, 0] - 0.2), "x", "nm")
    message = r"the biased variable x is nan for all 12 walkers at the start"
    with pytest.raises(ValueError, match=message):
        metadynamics(energy, at(0.1, count=12), [lost], well_tempered(), SETTINGS, generator())
    assert energy.n_calls == 0
    with pytest.raises(ValueError, match=message):
        method(variables=[lost]).init(generator(), at(0.1, count=12))
    wall = Restrained(CallableVariable(lambda x: x[:, 0, 0] / 0.0, "q", "nm"), UpperWall(0.1, 1.0), "wall")
    with pytest.raises(ValueError, match=r"the restrained variable q is inf for all 12 walkers"):
        metadynamics(energy, at(0.1, count=12), [X], well_tempered(), SETTINGS, generator(), restraints=[wall])
    some = at(0.1, count=12)
    some[0, 0, 0] = 0.3  # one walker has a value
    method(variables=[lost]).check_values(some)


def test_all_retired_or_told_to_raise():
    run, noise, state = retiring_run(limit=0.105)
    with pytest.warns(WalkerRetiredWarning), pytest.raises(WalkersExploded, match="all 20 walkers"):
        list(run.fill(noise, state, 200))
    run, noise, state = retiring_run(on_explosion="raise")
    with pytest.raises(RuntimeError, match=r"walker \d+ \(of \d+ such\)"):
        list(run.fill(noise, state, 20))


def test_walkers_that_start_again_are_counted():
    """Four walkers start in the hole, and take another's start; while they melt, others fall into it too."""
    start = at(0.05, count=12)
    start[:4, 0, 0] = 0.3
    energy = Hole(PlanarEnergy(Wells(barrier=0.0, tilt=0.0)), 0.2)
    message = "4 of 12 walkers, the first of them walker 0, lost their finite energy while they were relaxed or melted"
    run = SETTINGS.method(energy, [X], well_tempered())
    with pytest.warns(WalkerRestartedWarning, match=message):
        state = prepare(run, start, SETTINGS, generator())
    assert state.restarted == 4
    assert state.walkers.n_retired == 0
    assert MetadynamicsState.from_state_dict(state.state_dict()).restarted == 4
    with pytest.warns(WalkerRestartedWarning) as caught, pytest.warns(WalkerRetiredWarning):
        result = metadynamics(energy, start, [X], well_tempered(), replace(SETTINGS, melt_ps=0.5), generator())
    assert 4 < result.n_restarted < 12
    assert str(caught[0].message).startswith(f"{result.n_restarted} of 12 walkers")
    healthy = prepare(run, at(0.05, count=12), SETTINGS, generator())
    assert healthy.restarted == 0


# --- the driver -------------------------------------------------------------------------------------------------------


def test_a_whole_run():
    energy = PlanarEnergy(Wells(barrier=3.0))
    settings = replace(SETTINGS, melt_ps=0.5, positions_every=4, fill_record_steps=20)
    seen, stages = [], []
    result = metadynamics(
        energy,
        torch.tensor([[0.1, 0.0, 0.0]], dtype=torch.float64),
        [X],
        well_tempered(),
        settings,
        generator(),
        restraints=[Restrained(Y, UpperWall(0.3, 100.0), "wall")],
        progress=lambda *args: seen.append(args),
        on_record=lambda step: stages.append(step.stage),
    )
    assert stages == ["fill"] * 4 + ["burn-in"] * 4 + ["sample"] * 12
    assert seen[0] == ("melt", 1, 1)
    assert seen[-1] == ("sample", 12, 12)
    assert result.values.shape == (12, 12, 1)
    assert result.bias.shape == result.log_weights.shape == result.alive.shape == result.energy.shape == (12, 12)
    assert result.restraints["wall"].shape == (12, 12)
    assert result.positions.shape == (3, 12, 1, 3)
    assert result.position_records.tolist() == [0, 4, 8]
    assert torch.equal(result.positions[..., 0, 0], result.values[::4, :, 0])
    assert torch.equal(result.log_weights, result.bias / KT)
    assert torch.equal(result.bias.flatten(), result.frozen_bias(result.values.reshape(-1, 1)))
    assert torch.equal(result.groups.reshape(12, 12)[3], torch.arange(12))
    assert result.deposits == 8
    assert result.n_retired == 0
    assert result.n_restarted == 0
    assert result.complete
    assert result.energy_calls == energy.n_calls == 12 * (501 + 101 + 1 + 80 + 20 + 60)
    assert result.filling.values.shape == (4, 12, 1)
    assert result.filling.rct.shape == (4,)
    assert (result.frozen, result.filling.frozen) == (True, False)  # estimates from the filling are flagged
    assert not hasattr(result.filling, "log_weights")


@pytest.mark.parametrize(("records", "filled", "sampled"), [(3, 3, 0), (16, 8, 4)])
def test_a_run_may_be_stopped(records, filled, sampled):
    count = [0]

    def stop():
        count[0] += 1
        return count[0] == records

    start = at(0.1, count=12)
    result = metadynamics(PlanarEnergy(Wells()), start, [X], opes(), SETTINGS, generator(), should_stop=stop)
    assert not result.complete
    assert result.values.shape == (sampled, 12, 1)
    assert result.filling.values.shape == (filled, 12, 1)
    assert torch.isnan(result.filling.rct).all()  # OPES has no c(t)
    whole = metadynamics(PlanarEnergy(Wells()), start, [X], opes(), SETTINGS, generator())
    assert torch.equal(whole.values[:sampled], result.values)
    assert torch.equal(whole.filling.values[:filled], result.filling.values)


def test_samples_outside_the_grid_and_dead_walkers_are_counted():
    narrow = RepulsionBias.well_tempered(
        [VARIABLE], kT=KT, bias_factor=8.0, height=4.0, grid=[GridAxis(0.08, 0.12, 10)]
    )
    with pytest.warns(WalkerRetiredWarning), pytest.warns(WalkerRestartedWarning):
        result = metadynamics(Hole(PlanarEnergy(Wells()), 0.125), at(0.1, count=12), [X], narrow, SETTINGS, generator())
    x = result.values[..., 0]
    assert result.n_retired > 0
    assert result.n_restarted == 1
    assert result.n_outside == int((((x < 0.08) | (x > 0.12)) & result.alive).sum()) > 0
    assert torch.isneginf(result.log_weights[~result.alive]).all()


def test_strained_starts_are_relaxed_and_one_structure_a_walker_is_taken():
    start = torch.cat([at(0.1, count=6), at(-0.1, 0.4, count=6)])
    result = metadynamics(PlanarEnergy(Wells()), start, [X], well_tempered(), SETTINGS, generator())
    assert result.n_retired == 0
    with pytest.raises(ValueError, match="start: got 5 structures, expected one, or one for each of 12"):
        metadynamics(PlanarEnergy(Wells()), start[:5], [X], well_tempered(), SETTINGS, generator())


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"its kT is 2\.49"):
        method(temperature=310.0)
    with pytest.raises(ValueError, match="pace"):
        method(pace=0)
    with pytest.raises(ValueError, match=r"variables: got \['x'\]"):
        method(bias=RepulsionBias.opes([replace(VARIABLE, name="y")], kT=KT, barrier=20.0))
    with pytest.raises(ValueError, match="record_every: got 15 steps, expected a multiple of the pace, 10"):
        next(method().fill(generator(), method().init(generator(), at(0.1, count=2)), 3, record_every=15))
    with pytest.raises(ValueError, match="walkers"):
        replace(SETTINGS, walkers=0)
    with pytest.raises(ValueError, match="fill_ps"):
        replace(SETTINGS, fill_ps=math.inf)
    with pytest.raises(ValueError, match="time_step: got 0, expected a positive number of ps"):
        replace(SETTINGS, time_step=0)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({"fill_ps": 0.02}, r"fill_ps: 0\.02 ps hold no deposit, .* every 10 steps of 0\.005 ps, 0\.05 ps"),
        ({"burn_in_ps": 0.01}, r"burn_in_ps: 0\.01 ps hold no record, .* every 5 steps of 0\.005 ps, 0\.025 ps"),
        ({"production_ps": 0.01}, r"production_ps: 0\.01 ps hold no record"),
        ({"production_ps": 0.0}, r"production_ps: got 0\.0, expected a positive number of ps"),
    ],
)
def test_lengths_that_come_to_nothing_are_refused(length, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **length)


def test_no_filling_and_no_burn_in_are_said_by_zeros():
    given = well_tempered().deposited(torch.tensor([[0.1]], dtype=torch.float64))
    settings = replace(SETTINGS, fill_ps=0.0, burn_in_ps=0.0)
    result = metadynamics(PlanarEnergy(Wells()), at(0.1, count=12), [X], given, settings, generator())
    assert result.deposits == 0
    assert result.frozen_bias is given
    assert len(result.time) == settings.records == 12
