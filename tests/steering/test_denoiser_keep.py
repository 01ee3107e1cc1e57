"""Rows that are copies are not evaluated twice, and a silenced denoiser answers zeros of the right shape."""

from typing import Any

import pytest
import torch
from torch import nn

from feynkac.steering.denoiser import DenoiserTap
from feynkac.steering.denoiser.find import argument_names, is_control
from feynkac.steering.denoiser.rows import Call
from feynkac.steering.denoiser.silence import zeros_for

from .tapping import result, run, worst
from .zoo import MODULAR_ROWS, ROWS, generators, row

ALIKE = torch.tensor([0, 1, 0, 1])
DISTINCT = {"sd_inpaint4": 3, "svd": 3}  # their image takes numbers from the first generator, not from its copy


def named(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


def copies(pairs: int = 2) -> list[torch.Generator]:
    """Generators of four rows of which two are copies."""
    return [generator for _ in range(pairs) for generator in generators(2)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("case", **named([*ROWS, *MODULAR_ROWS]))
def test_copies_are_skipped_and_nothing_changes(case, size):
    pipe = case.pipe
    counts, plain_rows = [], []
    plain = run(case, pipe, lambda _, a: plain_rows.append(len(a["sample"])), 4, 3, generator=copies())
    tap = DenoiserTap(pipe, chunk_size=size)
    tap.begin_run(4 * case.tiles)

    def see(index: int, arguments: dict[str, Any]) -> None:
        counts.append(tap.rows_evaluated)
        tap.keep = torch.cat([ALIKE + 4 * tile for tile in range(case.tiles)])

    with tap.attached():
        assert worst(run(case, pipe, see, 4, 3, generator=copies()), plain) <= 1e-5
    spent = [b - a for a, b in zip([0, *counts], counts, strict=False)]
    expected = spent[0] // 4 * DISTINCT.get(case.name, 2)
    assert spent[1:] == [expected] * (len(plain_rows) - 1)


def test_rows_that_are_no_copies_are_evaluated_nevertheless():
    case = row("sd")
    plain = result(case, case.pipe, 4, 3)  # four different rows
    tap = DenoiserTap(case.pipe)
    with tap.attached():

        def see(index: int, arguments: dict[str, Any]) -> None:
            tap.keep = ALIKE

        assert worst(run(case, case.pipe, see, 4, 3), plain) <= 1e-5
    assert tap.rows_evaluated == 3 * 8


def test_believing_that_rows_are_copies_is_seen(monkeypatch):
    """Negative control: without the comparison of the rows, their copies would be wrong."""
    monkeypatch.setattr(Call, "copies", lambda self, kept: torch.ones(len(kept), dtype=torch.bool))
    case = row("sd")
    plain = result(case, case.pipe, 4, 3)
    tap = DenoiserTap(case.pipe)
    with tap.attached():
        changed = run(case, case.pipe, lambda *_: setattr(tap, "keep", ALIKE), 4, 3)
    assert worst(changed, plain) > 1e-2
    assert tap.rows_evaluated == 8 + 2 * 4


def test_copies_of_copies_are_refused():
    case = row("sd")
    tap = DenoiserTap(case.pipe)
    tap.keep = torch.tensor([1, 2, 2])
    with tap.attached(), pytest.raises(ValueError, match=r"keep\[keep\] == keep"):
        result(case, case.pipe, 3, 2)


def shapes_of_steps(case, tap: DenoiserTap) -> list[tuple[torch.Size, torch.dtype]]:
    kept = []
    with tap.attached():
        run(case, case.pipe, lambda _, a: kept.append((a["model_output"].shape, a["model_output"].dtype)), 3, 2)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("case", **named([*ROWS, *MODULAR_ROWS]))
def test_silence_looks_like_the_denoiser(case):
    tap, answers = DenoiserTap(case.pipe, record=True), []
    plain = shapes_of_steps(case, tap)
    assert tap.rows_evaluated > 0
    tap.begin_run(3 * case.tiles)

    def compare(module, args, kwargs, output):
        zeros = zeros_for(module, Call(argument_names(module), args, kwargs))
        assert not zeros[0].any()
        answers.append((zeros[0].shape, zeros[0].dtype) == (output[0].shape, output[0].dtype))

    handles = [module.register_forward_hook(compare, with_kwargs=True) for module in tap.modules]
    shapes_of_steps(case, tap)
    assert answers
    assert all(answers)
    tap.begin_run(3 * case.tiles)
    tap.silent, count = True, len(answers)
    assert shapes_of_steps(case, tap) == plain
    assert tap.rows_evaluated == 0
    assert len(answers) == count  # no forward was run
    for handle in handles:
        handle.remove()


class TinyControlNet(nn.Module):
    def forward(self, sample, timestep):
        return sample, timestep


def test_silent_control_networks_answer_nothing_and_sound_has_its_own_zeros():
    control = TinyControlNet()
    assert is_control(control)
    residuals, middle = zeros_for(control, Call(("sample", "timestep"), (torch.ones(2, 4, 8, 8), 0), {}))
    assert residuals == []
    assert middle.shape == (2, 1, 1, 1)
    both = {"hidden_states": torch.ones(2, 6, 8), "audio_hidden_states": torch.ones(2, 5, 3)}
    picture, sound = zeros_for(nn.Identity(), Call((), (), both))
    assert (picture.shape, sound.shape) == ((2, 6, 8), (2, 5, 3))
