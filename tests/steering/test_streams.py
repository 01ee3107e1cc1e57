"""Pipelines that make video and sound copy their scheduler in mid-call: both streams follow one vector of ancestors."""

import pytest
import torch
from torch import Tensor

from feynkac.steering.hook import listening

from .moving_rows import PERMUTATION, relative_error
from .moving_streams import JointMoving, joint_run
from .zoo import setting

NAMES = ("unipc", "unipc_flow", "dpmpp_2m", "flow_euler", "deis", "ddim")
REMEMBER = ("unipc", "unipc_flow", "dpmpp_2m", "deis")
PERMUTED = {3: PERMUTATION}


def listened(name: str, listener: JointMoving) -> tuple[list[Tensor], list[Tensor]]:
    scheduler = setting(name).make()
    with listening(scheduler, listener):
        return joint_run(scheduler)


def error(run: list[Tensor], plain: list[Tensor], rows: tuple[int, ...] = PERMUTATION, since: int = 3) -> float:
    """Of the whole trajectory: as it was before the step ``since``, permuted from there on."""
    expected = [state if step < since else state[list(rows)] for step, state in enumerate(plain)]
    return max(relative_error(state, other) for state, other in zip(run, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_both_streams_follow(name):
    plain = joint_run(setting(name).make())
    listener = JointMoving(PERMUTED)
    both = listened(name, listener)
    assert listener.calls == {4: 8, 3: 8}
    assert len(listener.schedulers) == 2
    assert max(error(stream, other) for stream, other in zip(both, plain, strict=True)) <= 1e-6


def test_every_step_may_have_its_own_ancestors():
    """Three re-labellings in a row are their composition."""
    plain = joint_run(setting("unipc").make())
    both = listened("unipc", JointMoving({2: PERMUTATION, 3: (1, 0, 2, 3), 6: (3, 2, 1, 0)}))
    composed = torch.arange(4)[list(PERMUTATION)][[1, 0, 2, 3]][[3, 2, 1, 0]]
    for stream, other in zip(both, plain, strict=True):
        assert relative_error(stream[-1], other[-1][composed]) <= 1e-6


def test_a_copied_particle_has_its_own_sound():
    """Ancestors with repeats: every child continues its parent's picture and its parent's sound."""
    rows = (1, 1, 3, 1)
    plain = joint_run(setting("unipc").make())
    both = listened("unipc", JointMoving({3: rows}))
    assert max(error(stream, other, rows) for stream, other in zip(both, plain, strict=True)) <= 1e-6


@pytest.mark.parametrize("name", REMEMBER)
@pytest.mark.parametrize("alone", [4, 3])
def test_one_stream_left_behind_shows(name, alone):
    """Negative control: only the first, or only the second, is permuted."""
    plain = joint_run(setting(name).make())
    both = listened(name, JointMoving(PERMUTED, streams=(alone,)))
    assert min(error(stream, other) for stream, other in zip(both, plain, strict=True)) > 1e-2


@pytest.mark.parametrize("name", REMEMBER)
def test_history_of_the_copy_left_behind_shows(name):
    """Negative control."""
    plain = joint_run(setting(name).make())
    both = listened(name, JointMoving(PERMUTED, history=False))
    assert min(error(stream, other) for stream, other in zip(both, plain, strict=True)) > 1e-3


def test_the_copy_has_its_own_memory():
    """The history of one stream is not that of the other: re-indexing one leaves the other as it was."""
    scheduler = setting("unipc").make()
    plain = joint_run(setting("unipc").make())
    with listening(scheduler, JointMoving({3: (0, 1, 2, 3)})):
        both = joint_run(scheduler)
    assert all(torch.equal(a, b) for a, b in zip(both[0] + both[1], plain[0] + plain[1], strict=True))
    assert vars(scheduler)["model_outputs"][-1].shape == (4, 3, 2, 2)
