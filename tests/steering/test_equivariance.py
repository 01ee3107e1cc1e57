"""A re-labelling of the particles in mid-run re-labels what comes out, and nothing else: all that a particle owns
moves with it, for every solver and every kind of pipeline.

The rows of the batch are permuted before one step, their generators too; the outputs must be those of the plain run,
permuted. What is left behind shows as an error.
"""

import functools
from typing import Any

import diffusers as d
import pytest
import torch
from torch import Tensor

from feynkac.steering.gather import gather_arguments, gather_history, gather_output

from .moving_rows import Moving, When, at_call, at_move, permuted, relative_error, run, run_setting
from .zoo import MODULAR_ROWS, ROWS, SETTINGS, Row, Setting, row, sd_betas, setting

pytestmark = pytest.mark.slow  # hundreds of whole pipelines

TOLERANCE = 1e-4
LEFT_BEHIND = 1e-3


def _inexact(reason: str) -> Any:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


_NO_SEED = _inexact("its noise comes from one Brownian tree for all rows, and no generator reaches it")
_BOUND = _inexact("the background's noise is bound to the row and blended in after step")


def _name(case: Setting | Row) -> str:
    return case.name


def _settings() -> list[Any]:
    return [pytest.param(case, id=case.name, marks=() if case.permutable else _NO_SEED) for case in SETTINGS]


def _rows() -> list[Any]:
    return [
        pytest.param(case, id=case.name, marks=_BOUND if case.rows_are_bound else ()) for case in (*ROWS, *MODULAR_ROWS)
    ]


@functools.cache
def plain_of_setting(name: str) -> tuple[Tensor, Moving]:
    listener = Moving()
    return run_setting(setting(name), listener), listener


@functools.cache
def plain_of_row(name: str) -> tuple[Tensor, Moving]:
    case = row(name)
    listener = Moving(tiles=case.tiles)
    return run(case.pipe, case, listener, 5), listener


def error_of_setting(case: Setting, when: When, **options: Any) -> float:
    """Relative error of the permuted run's latents."""
    plain, _ = plain_of_setting(case.name)
    return relative_error(run_setting(case, Moving(when, **options)), permuted(plain))


def error_of_row(case: Row, **options: Any) -> float:
    """Larger relative error of the permuted run's last latents and media."""
    plain, before = plain_of_row(case.name)
    listener = Moving(at_call(2), tiles=case.tiles, **options)
    media = run(case.pipe, case, listener, 5)
    assert listener.calls == before.calls > 2
    return max(relative_error(media, permuted(plain)), relative_error(listener.last, permuted(before.last)))


# --- solvers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _settings())
def test_permuting_rows_permutes_the_latents(case):
    """At the fourth call; for solvers that call ``step`` twice a move this is in the middle of one."""
    assert error_of_setting(case, at_call(3)) <= TOLERANCE


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.calls != 8 and s.permutable], ids=_name)
def test_permuting_rows_at_the_beginning_of_a_move(case):
    """Where weights may change, in solvers of many stages."""
    assert error_of_setting(case, at_move(3)) <= TOLERANCE


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.history and s.permutable], ids=_name)
def test_a_history_left_behind_shows(case):
    """Negative control of the tests above."""
    assert error_of_setting(case, at_call(3), history=False) > LEFT_BEHIND


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.calls == 15 and s.permutable], ids=_name)
def test_second_order_solvers_remember_nothing_between_moves(case):
    """Their memory is of the first stage, for the second: at the beginning of a move there is none to re-index."""
    assert error_of_setting(case, at_move(3), history=False) <= TOLERANCE


@pytest.mark.parametrize("case", SETTINGS, ids=_name)
def test_the_memory_found_is_the_memory_declared(case):
    plain, listener = plain_of_setting(case.name)
    assert listener.owned == set(case.history)
    assert listener.calls == case.calls
    assert torch.isfinite(plain).all()
    assert relative_error(permuted(plain), plain) > 0.1  # rows differ, or permuting them would prove nothing


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_2m_sde", "sa_solver", "flow_lcm", "ltx_ancestral"])
def test_a_generator_left_behind_shows(name):
    """Negative control: re-labelling takes the generators along, resampling does not."""
    assert error_of_setting(setting(name), at_call(3), streams=False) > LEFT_BEHIND


class MovingTrees(Moving):
    """Rows' noise comes from Brownian trees, one a row."""

    def move_streams(self, scheduler: Any, rows: Tensor) -> None:
        tree = scheduler.noise_sampler.tree
        tree.trees = [tree.trees[i] for i in rows.tolist()]


@pytest.mark.parametrize("history", [True, False])
def test_brownian_trees_seeded_by_row_can_be_permuted(history):
    """What is not testable with the one unseeded tree: the solver's own memory."""
    seeded = Setting(
        "dpm_sde_seeded",
        lambda: d.DPMSolverSDEScheduler(**sd_betas(noise_sampler_seed=[11, 12, 13, 14])),
        package="torchsde",
    )
    error = relative_error(
        run_setting(seeded, MovingTrees(at_call(3), history=history)), permuted(run_setting(seeded, Moving()))
    )
    assert (error <= TOLERANCE) if history else (error > LEFT_BEHIND)


# --- pipelines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _rows())
def test_permuting_rows_permutes_the_media(case):
    assert error_of_row(case) <= TOLERANCE


@pytest.mark.parametrize("case", [*ROWS, *MODULAR_ROWS], ids=_name)
def test_rows_are_told_apart(case):
    """Negative control of the test above: samples left in their order are far from the permuted ones."""
    plain, listener = plain_of_row(case.name)
    assert relative_error(permuted(plain), plain) > 1e-2
    assert relative_error(permuted(listener.last), listener.last) > 1e-2


@pytest.mark.parametrize("case", [r for r in ROWS if r.stochastic], ids=_name)
def test_a_generator_left_behind_shows_in_a_pipeline(case):
    assert error_of_row(case, streams=False) > LEFT_BEHIND


def test_a_history_left_behind_shows_in_a_pipeline():
    case = row("sana")
    assert plain_of_row("sana")[1].owned == {"model_outputs"}
    assert error_of_row(case, history=False) > LEFT_BEHIND


def test_the_extra_tensor_of_cogvideox_dpm_is_needed(monkeypatch):
    """The pipeline carries the clean prediction of the step before itself; left behind, it shows."""
    case = row("cogvideox_dpm")

    def forgetful(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        kept = arguments["old_pred_original_sample"]
        return gather_arguments(arguments, rows) | {"old_pred_original_sample": kept}

    monkeypatch.setattr(f"{Moving.__module__}.gather_arguments", forgetful)
    assert error_of_row(case) > LEFT_BEHIND


def test_blended_inpainting_is_off_by_its_background_alone():
    """How far the pipeline with slot-bound noise is from exact."""
    assert LEFT_BEHIND < error_of_row(row("sd_inpaint4")) < 0.2


# --- the re-indexers ------------------------------------------------------------------------------------------------


def test_arguments_of_a_row_move_and_its_noise_stays():
    rows = torch.tensor([1, 1, 0])
    x = torch.arange(6.0).reshape(3, 2)
    generators = [torch.Generator() for _ in range(3)]
    arguments = {
        "sample": x,
        "nested": {"pair": (x, None), "list": [x, 1]},
        "timestep": torch.tensor([5, 6, 7]),
        "other": torch.zeros(4, 2),
        "generator": generators,
        "variance_noise": x,
        "return_dict": False,
    }
    moved = gather_arguments(arguments, rows)
    assert torch.equal(moved["sample"], x[rows])
    assert torch.equal(moved["nested"]["pair"][0], x[rows])
    assert torch.equal(moved["nested"]["list"][0], x[rows])
    for name in ("timestep", "other", "generator", "variance_noise", "return_dict"):
        assert moved[name] is arguments[name]
    assert torch.equal(arguments["sample"], torch.arange(6.0).reshape(3, 2))


def test_tables_of_the_scheduler_stay_and_a_scheduler_within_moves():
    inner = d.DEISMultistepScheduler()
    scheduler = d.UniPCMultistepScheduler(solver_p=inner)
    scheduler.set_timesteps(4)
    x = torch.arange(16.0).reshape(4, 1, 2, 2)
    for t in scheduler.timesteps[:2]:
        x = scheduler.step(x, t, x).prev_sample
    sigmas, timesteps, outputs = scheduler.sigmas, scheduler.timesteps, inner.model_outputs
    moved = gather_history(scheduler, torch.tensor([3, 0, 1, 2]), 4)
    assert set(moved) == {"model_outputs", "last_sample", "solver_p.model_outputs"}
    assert (scheduler.sigmas is sigmas, scheduler.timesteps is timesteps) == (True, True)
    assert torch.equal(inner.model_outputs[-1][0], outputs[-1][3])


def test_outputs_of_both_kinds_may_shrink():
    x = torch.arange(4.0).reshape(4, 1)
    rows = torch.tensor([2, 2])
    output = d.schedulers.scheduling_ddim.DDIMSchedulerOutput(prev_sample=x, pred_original_sample=-x)
    kept = gather_output(output, rows, 2, 4)
    assert kept is output
    assert torch.equal(kept.prev_sample, x[rows])
    assert torch.equal(kept["pred_original_sample"], -x[rows])
    assert torch.equal(gather_output((x, 3), rows, 2, 4)[0], x[rows])
