"""The loop: its pieces, its records, collapse, and resuming after SIGKILL with the same bits."""

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feynkac.fkc import (
    Checkpoint,
    CheckpointError,
    Cloud,
    FunctionModel,
    NonFiniteWeightWarning,
    PopulationCollapsed,
    Streams,
    WeightError,
    distinct_roots,
    init,
    normal,
    smc,
    step,
)
from feynkac.fkc import collectors as collect
from feynkac.fkc.testing import check_batch_equals_singles, check_inputs_untouched, check_same_seed_same_output

INF = math.inf


def drifting(n_steps=6, log_g=None):
    return FunctionModel(
        sample=lambda g, k: normal(g, (k, 2)),
        kernel=lambda g, t, x: 0.9 * x + 0.3 * normal(g, x.shape[1:]),
        log_g=log_g or (lambda t, before, x: -((x[..., 0] - 1) ** 2)),
        n_steps=n_steps,
    )


def everything():
    return [
        collect.EffectiveSampleSize(),
        collect.LogEvidence(),
        collect.Resampled(),
        collect.DistinctRoots(),
        collect.Ancestors(),
        collect.NanCount(),
    ]


def test_init_and_step_give_what_the_loop_gives():
    model = drifting()
    streams = Streams.from_seed(3, 4)
    state = init(model, streams, 50)
    for _ in range(6):
        state, info = step(model, state, streams)
        assert info.resampled.shape == (4,)
    result = smc(model, particles=50, populations=4, seed=3)
    assert torch.equal(state.cloud.x, result.x)
    assert torch.equal(state.population.log_evidence, result.log_evidence)
    assert result.n_steps == 6


@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "systematic", "residual", "ssp"])
def test_conformance_of_the_loop(scheme):
    model = drifting()
    check_batch_equals_singles(model, particles=33, populations=4, seed=1, resampler=scheme, ess_threshold=0.8)
    check_same_seed_same_output(model, particles=33, populations=2, seed=1, resampler=scheme)


def test_a_step_changes_nothing_that_it_is_given():
    model, streams = drifting(), Streams.from_seed(3, 2)
    check_inputs_untouched(lambda s: step(model, s, streams, ess_threshold=1.1), init(model, streams, 20))


def test_everything_that_a_particle_carries_is_permuted_alike():
    x = torch.arange(6.0).reshape(1, 6)
    cloud = Cloud(x, {"double": 2 * x, "row": x[..., None].expand(1, 6, 3)}, {"temperature": torch.ones(1)})
    moved = cloud.permuted(torch.tensor([[5, 5, 0, 1, 1, 2]]))
    assert moved.x.tolist() == [[5, 5, 0, 1, 1, 2]]
    assert torch.equal(moved.carried["double"], 2 * moved.x)
    assert torch.equal(moved.carried["row"][..., 1], moved.x)
    assert torch.equal(moved.shared["temperature"], torch.ones(1))
    assert cloud.permuted(None) is cloud


def test_records():
    result = smc(drifting(), particles=40, populations=3, seed=5, ess_threshold=0.9, collectors=everything())
    records = result.collected
    assert {name: tuple(v.shape) for name, v in records.items()} == {
        "ess": (7, 3),
        "log_evidence": (7, 3),
        "resampled": (7, 3),
        "distinct_roots": (7, 3),
        "ancestors": (7, 3, 40),
        "n_nan": (7, 3),
    }
    assert torch.equal(records["log_evidence"][-1], result.log_evidence)
    assert torch.equal(records["resampled"].sum(dim=0), result.population.n_resamplings)
    # The roots are the ancestors followed back to the start.
    roots = torch.arange(40).expand(3, 40)
    for ancestors in records["ancestors"]:
        roots = roots.gather(1, ancestors)
    assert torch.equal(roots, result.population.roots)
    assert torch.equal(records["distinct_roots"][-1], distinct_roots(result.population))


def test_means_and_evidence_of_many_populations():
    result = smc(drifting(), particles=40, populations=3, seed=5)
    direct = (result.population.weights[..., None] * result.x).sum(1)
    torch.testing.assert_close(result.mean(lambda x: x), direct)
    assert tuple(result.std_error(lambda x: x).shape) == (3, 2)
    evidence = result.evidence()
    assert evidence.log_evidence == pytest.approx(math.log(float(result.log_evidence.exp().mean())))
    assert evidence.n_populations == 3
    with pytest.raises(WeightError, match="at least two"):
        smc(drifting(), particles=40, seed=5).evidence()


def dying(step_of_death, who):
    def log_g(t, before, x):
        value = -(x[..., 0] ** 2)
        return torch.where((x[..., 1] < who) & (t == step_of_death), -INF, value)

    return log_g


def test_a_collapsed_population_does_not_disturb_the_others():
    """Population 1 is marked by its first particle; all of it dies at step 2."""

    def sample(generators, k):
        x = normal(generators, (k, 2))
        x[..., 1] = 0.0
        if len(generators) > 1:
            x[1, :, 1] = -9.0
        return x

    def kernel(generators, t, x):
        return torch.stack([0.9 * x[..., 0] + normal(generators, x.shape[1:-1]), x[..., 1]], dim=-1)

    model = FunctionModel(sample, kernel, dying(2, who=-5.0), n_steps=5)
    with pytest.raises(PopulationCollapsed, match="population 1 collapsed at step 2: all 20 of 20") as caught:
        smc(model, particles=20, populations=3, seed=1)
    kept = smc(model, particles=20, populations=3, seed=1, on_collapse="keep")
    alone = smc(model, particles=20, populations=1, seed=1)
    assert kept.log_evidence[1] == -INF
    assert kept.log_evidence[0] == alone.log_evidence[0]
    assert bool(kept.x.isfinite().all())
    assert torch.equal(caught.value.result.log_evidence, kept.log_evidence)
    assert kept.log_evidence_std_error[1] == INF
    assert kept.population.n_reweightings.tolist() == [6, 3, 6]


def test_nan_potentials_are_counted_and_infinite_ones_refused():
    with pytest.warns(NonFiniteWeightWarning):
        result = smc(
            drifting(log_g=lambda t, before, x: torch.where(x[..., 0] > 1.5, math.nan, -x[..., 0])),
            particles=200,
            seed=2,
        )
    assert int(result.population.n_nan) > 0
    assert bool(result.log_evidence.isfinite())
    with pytest.raises(WeightError, match=r"\+inf"):
        smc(drifting(log_g=lambda t, before, x: torch.full_like(x[..., 0], INF)), particles=4, seed=2)


def test_counts_are_checked():
    with pytest.raises(ValueError, match="positive"):
        smc(drifting(), particles=0, seed=1)
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoint(Path("x"), every=0)
    with pytest.raises(ValueError, match="known:"):
        smc(drifting(), particles=3, seed=1, resampler="nonsense")


SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from feynkac.fkc import *
from feynkac.fkc import collectors as C
from feynkac.fkc.kernels import MALA
from feynkac.fkc.testing import DoubleWell, Gaussian

torch.set_num_threads(1)
folder, kill_at, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"
calls = 0

class Killing(DoubleWell):
    def log_prob_and_score(self, x):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().log_prob_and_score(x)

wide = Gaussian(2, 0.0, 1.5)
model = Tempering(wide, wide, Killing(), MALA(), AdaptiveSchedule(0.98, 80), 0.05, 1, StepSizeTuning(0.6, 0.3))
result = smc(model, particles=60, populations=3, seed=8, ess_threshold=0.9, resume=resume,
             collectors=[C.EffectiveSampleSize(), C.Ancestors(), C.Shared("time")],
             checkpoint=Checkpoint(Path(folder), every=3))
from feynkac.fkc.checkpoint import save_state
save_state(folder + "-result", {"x": result.x, "log_weights": result.log_weights, "z": result.log_evidence,
           "roots": result.population.roots, **result.collected}, {"n_steps": result.n_steps})
"""


def launch(folder, kill_at, mode):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(folder), str(kill_at), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    from feynkac.fkc.checkpoint import load_state

    whole = launch(tmp_path / "whole", -1, "start")
    assert whole.returncode == 0, whole.stderr
    killed = launch(tmp_path / "killed", 9, "start")
    assert killed.returncode == -signal.SIGKILL
    again = launch(tmp_path / "killed", 6, "resume")  # killed a second time
    assert again.returncode == -signal.SIGKILL
    ended = launch(tmp_path / "killed", -1, "resume")
    assert ended.returncode == 0, ended.stderr
    expected, meta = load_state(f"{tmp_path}/whole-result")
    found, found_meta = load_state(f"{tmp_path}/killed-result")
    assert meta == found_meta
    assert meta["n_steps"] > 13  # else the second kill came after the end
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_checkpoint_is_not_overwritten_nor_taken_for_another_run(tmp_path):
    def run(seed=1, particles=10, **options):
        return smc(drifting(), particles=particles, seed=seed, checkpoint=Checkpoint(tmp_path, every=2), **options)

    first = run()
    with pytest.raises(CheckpointError, match="already holds"):
        run()
    with pytest.raises(CheckpointError, match="seed: 1 there, 2 here"):
        run(seed=2, resume=True)
    with pytest.raises(CheckpointError, match="particles"):
        run(particles=11, resume=True)
    assert torch.equal(run(resume=True).x, first.x)


def test_resuming_an_empty_folder_starts_from_the_beginning(tmp_path):
    checkpoint = Checkpoint(tmp_path / "new", every=2)
    result = smc(drifting(), particles=10, seed=1, checkpoint=checkpoint, resume=True)
    assert torch.equal(result.x, smc(drifting(), particles=10, seed=1).x)
