"""Runs on disk and joined: nothing is lost on the way, and numbers over seeds are those of the seeds."""

import math

import pytest
import torch

pytest.importorskip("diffusers")

from feynkac.cli.steer.results import numbers, result_of, warnings_of, weight_arrays
from feynkac.cli.steer.state import as_one_population, from_state, join_runs, to_state
from feynkac.cli.steer.units import Condition
from feynkac.fkc import Population
from feynkac.fkc.checkpoint import load_state, save_state
from feynkac.steering import Run, StepRecord

K = 5


def made(seed: int, *, resample: bool = True) -> Run:
    """Three moves, the middle one resampled, the last one not judged."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn((1, K), generator=generator, dtype=torch.float64)

    first = Population.uniform(1, K).reweighted(draw())
    second, ancestors = first.resampled(generator, threshold=1.1 if resample else 0.0)
    final = second.reweighted(draw())
    reward = draw()
    return Run(
        population=final,
        records=[
            StepRecord(0, first, ancestors, draw(), {"a": draw()}),
            StepRecord(1, second, None, draw(), {"a": draw()}),
            StepRecord(2, final, None, None),
        ],
        rewards_by_control={"a": reward, "b": -reward},
        log_tilt=2 * reward,
        scales={"a": torch.tensor([2.0], dtype=torch.float64)},
        notes=[f"note {seed % 2}"],
    )


def equal(first: Run, second: Run) -> bool:
    tensors, meta = to_state(first)
    others, other = to_state(second)
    if meta != other or tensors.keys() != others.keys():
        return False
    return all(torch.equal(value.nan_to_num(7.0), others[name].nan_to_num(7.0)) for name, value in tensors.items())


def test_a_run_survives_the_disk(tmp_path):
    run = made(1)
    save_state(tmp_path / "state", *to_state(run))
    back = from_state(*load_state(tmp_path / "state"))
    assert equal(run, back)
    assert [a is None for a in back.ancestors] == [False, True, True]
    assert [r.log_potential is None for r in back.records] == [False, False, True]
    assert [list(r.rewards) for r in back.records] == [["a"], ["a"], []]
    for name in ("log_weights", "log_evidence", "log_evidence_std_error", "ess", "distinct_roots", "ess_trace"):
        assert torch.equal(getattr(back, name), getattr(run, name))
    assert not equal(run, made(2))  # the comparison can tell


def test_joined_runs_are_populations_side_by_side():
    runs = [made(1), made(2, resample=False), made(3)]
    joined = join_runs(runs)
    for name in ("log_weights", "log_evidence", "log_evidence_std_error", "distinct_roots"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(run, name) for run in runs]))
    assert torch.equal(joined.ess_trace, torch.cat([run.ess_trace for run in runs], dim=1))
    ancestors = joined.ancestors[0]
    assert torch.equal(ancestors[1], torch.arange(K))
    assert torch.equal(ancestors[2], runs[2].ancestors[0][0])
    assert torch.equal(joined.reward_trace("a")[1][:, 1], runs[1].reward_trace("a")[1][:, 0])
    assert joined.notes == ["note 1", "note 0"]
    assert join_runs(runs[:1]) is runs[0]


def test_independent_draws_become_one_population():
    reward = torch.tensor([[0.0], [1.0], [-torch.inf]], dtype=torch.float64)
    start = Population.uniform(3, 1)
    run = Run(
        population=start.reweighted(reward, on_collapse="keep"),
        records=[StepRecord(0, start, None, None)],
        rewards_by_control={"a": reward},
        log_tilt=reward,
    )
    one = as_one_population(run)
    assert torch.equal(one.log_weights, reward.T)
    assert float(one.log_evidence) == pytest.approx(math.log((1 + math.e) / 3))
    assert one.ess_trace.tolist() == [[3.0]]


def test_numbers_over_seeds():
    run = join_runs([made(seed) for seed in (1, 2, 3)])
    result = result_of(Condition("label", 4), [1, 2, 3], run, [], 1.0)
    found = {n.key: n for n in numbers([result])}
    evidences = run.log_evidence.exp()
    assert found["log_evidence"].value == pytest.approx(float(evidences.mean().log()))
    assert found["log_evidence"].error == pytest.approx(float(evidences.std() / evidences.mean()) / math.sqrt(3))
    assert found["log_evidence_spread"].value == pytest.approx(float(run.log_evidence.std()))
    weights = evidences[:, None] * run.weights
    expected = (weights * run.rewards_by_control["a"]).sum() / weights.sum()
    assert found["reward"].value == pytest.approx(float(expected))
    assert found["reward_1"].value == pytest.approx(-found["reward"].value)
    assert found["reward"].value != pytest.approx(float(run.rewards_by_control["a"].mean()), rel=1e-3)


def test_one_particle_has_a_number_but_no_error():
    population = Population.uniform(1, 1).reweighted(torch.tensor([[0.5]], dtype=torch.float64))
    one = torch.ones(1, 1, dtype=torch.float64)
    run = Run(population, [StepRecord(0, population, None, None)], rewards_by_control={"a": one}, log_tilt=one)
    result = result_of(Condition("none"), [0], run, [], 1.0)
    assert numbers([result])[0].text == "0.5 ± unknown"
    assert weight_arrays([result])["log_evidence_std_error"].tolist() == [[math.inf]]


def test_poor_weights_are_warned_of():
    uneven = Population.uniform(1, 20).reweighted(torch.tensor([[9.0] + [0.0] * 19], dtype=torch.float64))
    fine = Population.uniform(1, 20)
    for population, expected in ((uneven, 1), (fine, 0)):
        zeros = torch.zeros(1, 20, dtype=torch.float64)
        run = Run(population, [StepRecord(0, population, None, None)], rewards_by_control={"a": zeros}, log_tilt=zeros)
        assert len(warnings_of([result_of(Condition("none"), [0], run, [], 1.0)])) == expected
