"""Checkpoint and resume inside a trajectory: a run that was stopped ends with the bits of one that was not."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")

from feynkac.fkc.errors import CheckpointError
from feynkac.fkc.run_state import Checkpoint
from feynkac.steering import FKSteering, SoftValueGuidance, SteeringError, attach, every
from feynkac.steering import resume as resume_module
from feynkac.steering.rewards import RewardError
from feynkac.steering.testing import QuadraticReward

from .gaussian_pipe import STEPS, gaussian_pipe, run_pipe
from .zoo import SETTINGS, generators, media, row, with_setting

PIPE = gaussian_pipe()


class Killed(RuntimeError):
    pass


def interrupted(reward, after):
    """The reward, until it has been asked ``after`` times."""
    asked = [0]

    def judge(x):
        asked[0] += 1
        if asked[0] > after:
            raise Killed
        return reward(x)

    judge.__name__ = reward.__name__ if hasattr(reward, "__name__") else type(reward).__name__
    return judge


def mean(x):
    return x.flatten(1).mean(dim=1)


CONTROLS = {
    "fk": lambda reward: FKSteering(reward, scale=2.0, on="latents"),
    "fk, lag 1, max": lambda reward: FKSteering(reward, scale=2.0, on="latents", lag=1, potential="max", when=every(2)),
    "soft value": lambda reward: SoftValueGuidance(reward, temperature=0.5, candidates=4, then=(2,), on="latents"),
}


def same(a, b):
    assert torch.equal(a.samples(), b.samples())
    assert torch.equal(a.log_weights, b.log_weights)
    assert torch.equal(a.log_evidence, b.log_evidence)
    assert torch.equal(a.rewards, b.rewards)
    assert torch.equal(a.distinct_roots, b.distinct_roots)
    assert torch.equal(a.ess_trace, b.ess_trace)
    assert all((x is None) == (y is None) for x, y in zip(a.ancestors, b.ancestors, strict=True))
    assert a.calls == b.calls


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("every_calls", [1, 7])
def test_a_killed_run_goes_on_with_the_same_bits(name, every_calls, tmp_path):
    make = CONTROLS[name]
    rows = 16 * make(mean).candidates
    with attach(PIPE, make(mean), particles=8, seed=1, ess_threshold=0.9) as whole:
        images = run_pipe(PIPE, rows)
    options = {"particles": 8, "seed": 1, "ess_threshold": 0.9, "checkpoint": Checkpoint(tmp_path, every_calls)}
    with pytest.raises(RewardError), attach(PIPE, make(interrupted(mean, 8)), **options):
        run_pipe(PIPE, rows)
    with attach(PIPE, make(mean), resume=True, **options) as resumed:
        again = run_pipe(PIPE, rows)
    same(resumed, whole)
    assert (again == images).all()


def test_the_denoiser_is_not_asked_again(tmp_path):
    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, module, inputs):
            self.calls += 1

    counting = Counting()
    handle = PIPE.unet.register_forward_pre_hook(counting)
    try:
        control = CONTROLS["fk"](interrupted(mean, 12))
        options = {"particles": 8, "seed": 1, "checkpoint": Checkpoint(tmp_path, 4)}
        with pytest.raises(RewardError), attach(PIPE, control, **options):
            run_pipe(PIPE, 8)
        counting.calls = 0
        with attach(PIPE, CONTROLS["fk"](mean), resume=True, **options):
            run_pipe(PIPE, 8)
        assert counting.calls == STEPS - 12
    finally:
        handle.remove()


def test_without_the_solver_state_the_bits_differ(tmp_path, monkeypatch):
    """Negative control: generators that are not put back."""
    monkeypatch.setattr(resume_module.Restored, "restore_generators", lambda self, pipe: None)
    with pytest.raises(AssertionError):
        test_a_killed_run_goes_on_with_the_same_bits("fk", 1, tmp_path)


def run_setting(case, tmp_path, *, stop):
    """One run of a scheduler setting through its tiny pipeline, stopped and resumed if ``stop``."""
    stochastic = case.stochastic
    kernel = {} if stochastic else {"particles": 1}

    def go(reward, **more):
        pipe, base = with_setting(case)
        options = {"particles": 4, "seed": 2, "ess_threshold": 1.1} | kernel | more
        rows = options["particles"]
        with attach(pipe, FKSteering(reward, scale=3.0, on="latents"), **options) as run:
            out = media(pipe(**base.call(rows, 8, output_type="latent", seed=1, **case.arguments)))
        return out, run

    if not stop:
        return go(mean)
    point = Checkpoint(tmp_path, 3)
    with pytest.raises(RewardError):
        go(interrupted(mean, 6), checkpoint=point)
    return go(mean, checkpoint=point, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [s for s in SETTINGS if s.permutable and s.supported], ids=lambda s: s.name)
def test_every_solver_is_saved_whole(case, tmp_path):
    whole, run = run_setting(case, tmp_path, stop=False)
    again, resumed = run_setting(case, tmp_path, stop=True)
    assert torch.equal(whole, again)
    same(run, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_eta1", "flux", "wan", "cogvideox_dpm"])
def test_pipelines_resume(name, tmp_path):
    case = row(name)

    def go(reward, **more):
        pipe = case.build()
        options = {"particles": 3, "seed": 2, "transition": "native" if case.stochastic else "stochastic"} | more
        with attach(pipe, FKSteering(reward, scale=3.0, on="latents"), **options) as run:
            out = media(pipe(**case.call(3, 5, output_type="latent", seed=1)))
        return out, run

    whole, run = go(mean)
    with pytest.raises(RewardError):
        go(interrupted(mean, 3), checkpoint=Checkpoint(tmp_path, 2))
    again, resumed = go(mean, checkpoint=Checkpoint(tmp_path, 2), resume=True)
    assert torch.equal(whole, again)
    same(run, resumed)


def test_another_run_is_refused(tmp_path):
    point = Checkpoint(tmp_path, 4)
    with attach(PIPE, CONTROLS["fk"](mean), particles=8, seed=1, checkpoint=point):
        run_pipe(PIPE, 8)
    with (
        pytest.raises(CheckpointError, match="already holds"),
        attach(PIPE, CONTROLS["fk"](mean), particles=8, seed=1, checkpoint=point),
    ):
        run_pipe(PIPE, 8)
    for changed, message in (({"seed": 2}, "seed: 1 there, 2 here"), ({"particles": 4}, "particles: 8 there, 4 here")):
        options = {"particles": 8, "seed": 1} | changed
        with (
            pytest.raises(CheckpointError, match=message),
            attach(PIPE, CONTROLS["fk"](mean), checkpoint=point, resume=True, **options),
        ):
            run_pipe(PIPE, 8)
    with (
        pytest.raises(CheckpointError, match=r"eta: 1.0 there, 0.5 here"),
        attach(PIPE, CONTROLS["fk"](mean), particles=8, seed=1, checkpoint=point, resume=True),
    ):
        run_pipe(PIPE, 8, eta=0.5)


def test_resuming_nothing_begins(tmp_path):
    control = FKSteering(QuadraticReward(beta=1.0), scale=1.0, on="latents")
    with attach(PIPE, control, particles=8, seed=1) as plain:
        run_pipe(PIPE, 8)
    with attach(PIPE, control, particles=8, seed=1, checkpoint=Checkpoint(tmp_path, 5), resume=True) as run:
        run_pipe(PIPE, 8)
    assert torch.equal(run.samples(), plain.samples())


def test_two_streams_are_refused(tmp_path):
    control = FKSteering(mean, scale=1.0, on="latents")
    scheduler = PIPE.scheduler
    x = torch.zeros(4, 1, 1, 1)
    with attach(PIPE, control, particles=4, seed=0, checkpoint=Checkpoint(tmp_path, 5)):
        scheduler.set_timesteps(STEPS)
        twin = copy.deepcopy(scheduler)
        t = scheduler.timesteps[0]
        scheduler.step(x, t, x, eta=1.0, generator=generators(4))
        with pytest.raises(SteeringError, match="two streams"):
            twin.step(x, t, x, eta=1.0)
