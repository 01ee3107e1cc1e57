"""Conditioning that changes within a population is refused, by argument and row."""

from typing import Any

import pytest
import torch

from feynkac.steering.denoiser import DenoiserTap
from feynkac.steering.denoiser.guard import LayoutGuard
from feynkac.steering.denoiser.rows import Call
from feynkac.steering.errors import BatchLayoutError

from .tapping import result, run
from .zoo import MODULAR_ROWS, NEGATIVE, PROMPT, ROWS, generators, row

OTHER = "a blue boat"


def guarded(case, pipe, populations: int | None, particles: int, **more: Any) -> None:
    tap = DenoiserTap(pipe)
    tap.begin_run()
    tap.check_layout(populations, particles)
    with tap.attached():
        result(case, pipe, particles, 2 if case.name == "sd_img2img" else 1, **more)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*ROWS, *MODULAR_ROWS], ids=lambda case: case.name)
def test_one_prompt_passes_everywhere(case):
    guarded(case, case.pipe, 1, 3)


def two_prompts(case, prompts: list[str], per_prompt: int, **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompts,
        "negative_prompt": [NEGATIVE] * len(prompts),
        case.many_by: per_prompt,
        "generator": generators(6),
        **more,
    }


@pytest.mark.parametrize("populations", [2, None])
def test_side_by_side_passes(populations):
    case = row("sd")
    guarded(case, case.pipe, populations, 3, **two_prompts(case, [PROMPT, OTHER], 3))
    guarded(case, case.pipe, populations, 3, **two_prompts(case, [PROMPT] * 3 + [OTHER] * 3, 1))


@pytest.mark.parametrize("name", ["sd", "sd3", "sdxl"])
def test_interleaved_prompts_are_refused(name):
    """A B A, B A B: the middle ones are others, in the conditional branch, whose rows follow the six of the other."""
    case = row(name)
    call = two_prompts(case, [PROMPT, OTHER] * 3, 1)
    with pytest.raises(BatchLayoutError, match=r"'encoder_hidden_states': rows 7, 10 are conditioned unlike the first"):
        guarded(case, case.pipe, 2, 3, **call)


def test_interleaved_added_conditions_are_refused():
    """The pooled embeddings sit in a dictionary argument."""
    call = Call(("sample",), (torch.zeros(6, 4, 8, 8),), {})
    pooled = {"text_embeds": torch.tensor([[1.0], [2.0]] * 3), "time_ids": torch.ones(6, 6)}
    call.kwargs["added_cond_kwargs"] = pooled
    with pytest.raises(BatchLayoutError, match="'text_embeds': rows 1, 4 are conditioned unlike"):
        LayoutGuard(2, 3).check(call)
    pooled["text_embeds"] = torch.tensor([[1.0]] * 3 + [[2.0]] * 3)
    LayoutGuard(2, 3).check(call)


def test_interleaved_labels_are_refused():
    case = row("dit")
    with pytest.raises(BatchLayoutError, match=r"'class_labels': rows 1, 4 are conditioned unlike"):
        guarded(case, case.pipe, 2, 3, class_labels=[7, 3] * 3, generator=generators(6))
    guarded(case, case.pipe, 2, 3, class_labels=[7] * 3 + [3] * 3, generator=generators(6))


def test_mask_that_is_tiled_against_its_embeddings_is_refused():
    """LTX repeats the attention masks of two prompts A B A B A B, and their embeddings A A A B B B."""
    case = row("ltx")
    call = two_prompts(case, [PROMPT, OTHER], 3)
    with pytest.raises(BatchLayoutError, match=r"'encoder_attention_mask': rows 7, 10 are conditioned unlike"):
        guarded(case, case.pipe, 2, 3, **call)
    guarded(case, case.pipe, 2, 3, **two_prompts(case, [PROMPT, "a blue boat on the sea"], 3))  # masks of equal length


def test_last_digits_are_forgiven_and_more_is_not():
    case = row("sd")
    pipe = case.pipe
    plain = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1)
    call = {"prompt": None, "negative_prompt": None, "negative_prompt_embeds": plain, "num_images_per_prompt": 1}
    for error, passes in ((1e-6, True), (1e-2, False)):
        embeds = plain.clone()
        embeds[2, 0, 0] += error
        if passes:
            guarded(case, pipe, 1, 3, prompt_embeds=embeds, **call)
        else:
            with pytest.raises(BatchLayoutError, match="rows 5 are conditioned"):
                guarded(case, pipe, 1, 3, prompt_embeds=embeds, **call)


def test_wrong_numbers_of_rows_are_refused():
    case = row("sd")
    tap = DenoiserTap(case.pipe)
    tap.check_layout(2, 4)
    with tap.attached():
        result(case, case.pipe, 3, 1)
        with pytest.raises(BatchLayoutError, match="no multiple of 2 populations x 4 rows"):
            tap.end_step()
        tap.end_step()


@pytest.mark.parametrize("late", [False, True], ids=["before the first call", "at the first step"])
def test_the_check_lasts_for_one_step(late):
    """Whichever comes first, the denoiser's calls of one step are checked and no others."""
    case = row("sd")
    tap, counts = DenoiserTap(case.pipe), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        if late and index == 0:
            tap.check_layout(None, 3)
        counts.append(len(tap._compared))
        tap.end_step()

    if not late:
        tap.check_layout(None, 3)
    with tap.attached():
        run(case, case.pipe, see, 3, 3)
    assert counts == ([0, 1, 0] if late else [1, 0, 0])
