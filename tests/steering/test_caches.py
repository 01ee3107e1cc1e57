"""Feature caches on a denoiser hold every row's features of an earlier step: they move with the particles.

A cache is hit after the rows were permuted; with its tensors re-indexed the outputs are those of the plain cached run,
permuted; without, a particle is continued with another one's features.
"""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from feynkac.steering.errors import SteeringError
from feynkac.steering.gather import gather_caches

from .moving_caches import ROWS_OF_CACHES, STEPS, cached_pipeline, counting_layers
from .moving_rows import Moving, at_call, permuted, relative_error, run
from .zoo import row

pytestmark = [
    pytest.mark.slow,  # dozens of whole pipelines
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # inside FasterCache
]

EXACT = 1e-6
_NAMES = [f"{pipeline}-{cache}" for pipeline, cache in ROWS_OF_CACHES]


@functools.cache
def cached(pipeline: str, cache: str | None) -> tuple[Any, Tensor, Moving, int]:
    """Pipeline, media and listener of a plain run, linear layers run."""
    pipe = cached_pipeline(pipeline, cache)
    listener = Moving()
    with counting_layers(pipe.transformer) as count:
        media = run(pipe, row(pipeline), listener, STEPS)
    return pipe, media, listener, count[0]


def errors(pipeline: str, cache: str, listener: Moving) -> tuple[float, float]:
    """Relative errors of the last latents and of the media."""
    pipe, media, plain, _ = cached(pipeline, cache)
    moved = run(pipe, row(pipeline), listener, STEPS)
    return relative_error(listener.last, permuted(plain.last)), relative_error(moved, permuted(media))


@pytest.mark.parametrize(("pipeline", "cache"), ROWS_OF_CACHES, ids=_NAMES)
def test_the_cache_is_hit_and_forgotten_between_runs(pipeline, cache):
    pipe, media, listener, layers = cached(pipeline, cache)
    _, full, _, all_layers = cached(pipeline, None)
    assert layers < 0.9 * all_layers
    assert relative_error(media, full) > 1e-3
    again = Moving()
    assert torch.equal(run(pipe, row(pipeline), again, STEPS), media)
    assert torch.equal(again.last, listener.last)


@pytest.mark.parametrize(("pipeline", "cache"), ROWS_OF_CACHES, ids=_NAMES)
def test_a_cache_moves_with_the_particles(pipeline, cache):
    listener = Moving(at_call(3), caches=[cached(pipeline, cache)[0].transformer])
    assert max(errors(pipeline, cache, listener)) <= EXACT
    assert listener.cached >= 2


@pytest.mark.parametrize(("pipeline", "cache"), ROWS_OF_CACHES, ids=_NAMES)
def test_a_cache_left_behind_shows(pipeline, cache):
    """Negative control."""
    assert min(errors(pipeline, cache, Moving(at_call(3)))) > 1e-3


def test_the_pipeline_itself_needs_no_cache_to_be_equivariant():
    for pipeline in ("flux", "wan", "ltx", "cogvideox"):
        _, media, _, _ = cached(pipeline, None)
        moved = run(cached(pipeline, None)[0], row(pipeline), Moving(at_call(3)), STEPS)
        assert relative_error(moved, permuted(media)) <= EXACT


def test_two_branches_of_guidance_have_their_own_states():
    """Wan runs its branches one after the other, each with its cache; CogVideoX runs them as one batch of 2 K rows."""
    apart, together = cached_pipeline("wan", "magnitude"), cached_pipeline("cogvideox", "magnitude")
    seen: dict[str, list[int]] = {}

    class Looking(Moving):
        def on_step(self, scheduler: Any, base_step: Any, bound: Any) -> Any:
            if self.calls == 3:
                block = next(m for m in self.caches[0].modules() if hasattr(m, "attn1"))
                manager = block._diffusers_hook.hooks["mag_cache_leader_block_hook"].state_manager
                states = manager._state_cache.values()
                seen[type(self.caches[0]).__name__] = [len(state.previous_residual) for state in states]
            return super().on_step(scheduler, base_step, bound)

    for name, pipe in (("wan", apart), ("cogvideox", together)):
        run(pipe, row(name), Looking(caches=[pipe.transformer]), STEPS)
    assert seen == {"WanTransformer3DModel": [4, 4], "CogVideoXTransformer3DModel": [8]}


# --- whose a cached tensor is ---------------------------------------------------------------------------------------


class _Hook(ModelHook):
    _is_stateful = True

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state


def _denoiser(*states: Any) -> nn.Module:
    module = nn.Sequential(*(nn.Identity() for _ in states))
    for part, state in zip(module, states, strict=True):
        HookRegistry.check_if_exists_or_initialize(part).register_hook(_Hook(state), "cache")
    return module


def _numbered(*shape: int) -> Tensor:
    return torch.arange(shape[0], dtype=torch.float32).reshape(-1, *([1] * (len(shape) - 1))).expand(shape).clone()


def _entries(value: Tensor) -> list[int]:
    return [int(x) for x in value.flatten(1)[:, 0]]


ANCESTORS = torch.tensor([2, 2, 0])


def test_every_container_is_looked_into():
    state = SimpleNamespace(
        plain=_numbered(3, 2),
        pair=(_numbered(3, 2), None),
        listed=[[_numbered(6, 2)]],
        table={0: {1: _numbered(3, 2)}},
        count=3,
        vector=torch.arange(3),
    )
    assert gather_caches([_denoiser(state)], ANCESTORS) == 4
    for value in (state.plain, state.pair[0], state.table[0][1]):
        assert _entries(value) == [2, 2, 0]
    assert _entries(state.listed[0][0]) == [2, 2, 0, 5, 5, 3]
    assert (state.pair[1], state.count, state.vector.tolist()) == (None, 3, [0, 1, 2])


def test_a_list_of_rows_moves_as_a_list():
    """SeaCache keeps what it compares with the next step as one tensor a row, without an axis for rows."""
    state = SimpleNamespace(previous_indicator=[torch.full((3, 2), float(i)) for i in range(3)])
    gather_caches([_denoiser(state)], ANCESTORS)
    assert [float(entry[0, 0]) for entry in state.previous_indicator] == [2, 2, 0]


def test_a_state_that_two_hooks_share_is_moved_once():
    state = SimpleNamespace(cache=_numbered(3, 2))
    rotation = torch.tensor([1, 2, 0])
    assert gather_caches([_denoiser(state, state), _denoiser(state)], rotation) == 1
    assert _entries(state.cache) == [1, 2, 0]


def test_nothing_is_copied_when_nobody_moves():
    state = SimpleNamespace(cache=_numbered(7, 2))
    before = state.cache
    assert gather_caches([_denoiser(state)], torch.arange(3)) == 0
    assert state.cache is before
    assert gather_caches([nn.Linear(2, 2)], ANCESTORS) == 0


def test_frames_folded_into_the_batch_move_with_their_row_once_the_branches_are_known():
    """Entries (2 branches, 3 rows, 2 frames)."""
    state = SimpleNamespace(cache=_numbered(12, 2))
    with pytest.raises(SteeringError, match=r"SimpleNamespace.cache has 12 entries, expected 3 rows x 1 or 2"):
        gather_caches([_denoiser(state)], ANCESTORS)
    gather_caches([_denoiser(state)], ANCESTORS, branches=2)
    assert _entries(state.cache) == [4, 5, 4, 5, 0, 1, 10, 11, 10, 11, 6, 7]


@pytest.mark.parametrize(("entries", "branches"), [(7, None), (1, None), (9, None), (9, 2), (7, 1)])
def test_a_tensor_that_is_nobody_s_is_refused(entries, branches):
    with pytest.raises(SteeringError, match="disable the cache"):
        gather_caches([_denoiser(SimpleNamespace(cache=_numbered(entries, 2)))], ANCESTORS, branches)
