"""Copies of one particle part where the sampler adds noise and nowhere else: generators stay with the rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from feynkac.steering.gather import gather_arguments

from .moving_rows import ROWS_RUN, Moving, When, at_call, at_move, run, run_setting
from .zoo import MODULAR_ROWS, ROWS, SETTINGS, Setting, generators, setting

pytestmark = pytest.mark.slow  # a hundred whole pipelines

FIRST = (0,) * ROWS_RUN  # every row becomes a copy of the first


def spread(values: Tensor) -> tuple[float, float]:
    """Smallest and largest distance of two rows, relative to the largest value."""
    flat = values.reshape(len(values), -1).double()
    distances = torch.cdist(flat[None], flat[None], p=float("inf"))[0] / flat.abs().max()
    pairs = distances[torch.triu(torch.ones_like(distances), 1) > 0]
    return float(pairs.min()), float(pairs.max())


def assert_parted(values: Tensor, parted: bool) -> None:
    nearest, farthest = spread(values)
    if parted:
        assert nearest > 1e-3
    else:
        assert farthest <= 1e-6


def copied(case: Setting) -> When:
    """At the third move; a setting without known levels is asked by its calls."""
    return at_move(2) if case.supported else at_call(2)


@pytest.mark.parametrize("case", SETTINGS, ids=lambda s: s.name)
def test_copies_part_where_the_solver_adds_noise(case):
    listener = Moving(copied(case), rows=FIRST, streams=False)
    values = run_setting(case, listener)
    assert set(listener.moved) <= set(case.history)
    assert_parted(values, case.stochastic)


@pytest.mark.parametrize("case", [*ROWS, *MODULAR_ROWS], ids=lambda r: r.name)
def test_copies_part_where_the_pipeline_adds_noise(case):
    """Inpainting with 4 channels adds the row's own background noise after the step, whatever its scheduler does."""
    listener = Moving(at_call(2), rows=FIRST, streams=False, tiles=case.tiles)
    run(case.pipe, case, listener, 5)
    assert listener.last is not None
    assert_parted(listener.last[:ROWS_RUN], case.stochastic or case.rows_are_bound)


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.history and not s.stochastic], ids=lambda s: s.name)
def test_copies_of_the_sample_alone_are_no_copies(case):
    """Negative control: with the history left behind, even a deterministic solver parts them."""
    values = run_setting(case, Moving(at_call(3), rows=FIRST, streams=False, history=False))
    assert spread(values)[0] > 1e-4


class CopyingNoise(Moving):
    """Negative control: the generators' states move with the particles."""

    def move_streams(self, scheduler: Any, rows: Tensor) -> None:
        assert self.generator is not None
        states = [self.generator[i].get_state() for i in rows.tolist()]
        self.generator = generators(len(states))
        for generator, state in zip(self.generator, states, strict=True):
            generator.set_state(state)


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.stochastic and s.permutable], ids=lambda s: s.name)
def test_copied_generators_would_keep_the_copies_together(case):
    assert_parted(run_setting(case, CopyingNoise(copied(case), rows=FIRST)), False)


def test_generators_are_handed_on_as_they_are():
    streams = generators(ROWS_RUN)
    states = [g.get_state() for g in streams]
    for generator in (streams, streams[0], None):
        arguments = {"sample": torch.zeros(ROWS_RUN, 2), "generator": generator}
        assert gather_arguments(arguments, torch.tensor(FIRST))["generator"] is generator
    assert all(torch.equal(g.get_state(), state) for g, state in zip(streams, states, strict=True))


def _step(name: str) -> Callable[[Any, Tensor, Any], Tensor]:
    scheduler = setting(name).make()
    scheduler.set_timesteps(4)

    def step(output: Tensor, sample: Tensor, generator: Any) -> Tensor:
        return scheduler.step(output, scheduler.timesteps[0], sample, generator=generator).prev_sample

    return step


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_noise_of_a_row_does_not_depend_on_the_other_rows(name):
    """The row's generator alone decides: the children of one parent in slots i and j draw what slots i and j draw."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).expand(ROWS_RUN, -1, -1, -1)
    together = _step(name)(x, x, generators(ROWS_RUN))
    alone = torch.cat([_step(name)(x[:1], x[:1], [g]) for g in generators(ROWS_RUN)])
    assert torch.equal(together, alone)
    assert spread(together)[0] > 1e-3
