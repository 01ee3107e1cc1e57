"""Guidance branches read off a fit of the model output, against the coefficients and against a tied batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from feynkac.steering.denoiser import Branches, DenoiserTap
from feynkac.steering.denoiser.branches import fit_branches
from feynkac.steering.errors import SteeringError
from feynkac.steering.hook import listening

from .tapping import Watching, result, run, worst
from .zoo import MODULAR_ROWS, NEGATIVE, PROMPT, ROWS, generators, row

pytestmark = pytest.mark.slow  # dozens of whole pipelines

LINEAR = [case for case in ROWS if case.name not in ("qwen", "svd")]
GUIDED = [case for case in LINEAR if len(case.branches) == 2]
SCALES = {"modular_sd3": (7.0, -6.0), "modular_sdxl": (7.5, -6.5), "modular_wan": (5.0, -4.0)}  # guiders' defaults


def named(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


def steps_of(case, **more: Any) -> list[tuple[Tensor, tuple[Tensor, ...], Branches]]:
    """(model output, recorded outputs, branches) of every step."""
    tap, seen = DenoiserTap(case.pipe, record=True), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        output = arguments["model_output"]
        seen.append((output, tuple(record.output for record in tap._calls), tap.branches(output)))
        tap.end_step()

    with tap.attached():
        run(case, case.pipe, see, 3, 3, **more)
    assert not tap._calls
    return seen


@pytest.mark.parametrize("case", **named([*LINEAR, *MODULAR_ROWS]))
def test_coefficients_of_every_pipeline(case):
    expected = case.branches or SCALES[case.name]
    seen = steps_of(case)
    assert len(seen) == (2 if case.name == "sd_img2img" else 3)
    for output, _, branches in seen:
        assert branches.residual <= 1e-6
        assert branches.coefficients == pytest.approx(expected, abs=2e-3)  # similar branches: less is not determined
        rebuilt = sum(c * p for c, p in zip(branches.coefficients, branches.predictions, strict=True))
        assert rebuilt.shape == output.shape
        assert worst(rebuilt, output) <= 1e-5


@pytest.mark.parametrize("case", **named([c for c in (*LINEAR, *MODULAR_ROWS) if c.name != "consistency"]))
def test_shuffled_records_are_no_branches(case):
    """Negative control: rows in another order reproduce nothing."""
    output, records, _ = steps_of(case)[-1]
    order = torch.tensor([2, 0, 1])
    shuffled = []
    for record in records:
        index = torch.cat([order + 3 * tile for tile in range(len(record) // 3)])
        shuffled.append(record[index])
    with pytest.raises(SteeringError, match="guidance is not linear"):
        fit_branches(shuffled, output)


@pytest.mark.parametrize("case", **named(GUIDED))
def test_signs_name_the_branches(case):
    """The branch that does not move when the prompt changes is the unconditional one."""
    other = {"class_labels": [3] * 3} if case.name == "dit" else {"prompt": "a blue boat on the sea"}
    if case.many_by == "prompt":
        other = {"prompt": [other["prompt"]] * 3}
    _, _, ours = steps_of(case)[0]
    _, _, theirs = steps_of(case, **other)[0]
    assert ours.guidance == pytest.approx(max(case.branches), abs=2e-3)
    assert worst(theirs.unconditional, ours.unconditional) <= 1e-5
    assert worst(theirs.conditional, ours.conditional) > 1e-5


def test_guidance_that_rises_over_frames_is_fitted_by_frame():
    for output, _, branches in steps_of(row("svd")):
        assert branches.residual <= 1e-6
        scales = torch.linspace(1.0, 2.5, 3, dtype=torch.float64)
        expected = torch.stack([1.0 - scales, scales], dim=1)
        torch.testing.assert_close(branches.coefficients, expected, atol=1e-4, rtol=0.0)
        weights = branches.coefficients.float().reshape(1, 3, 2, 1, 1, 1)
        rebuilt = (weights * torch.stack(branches.predictions, dim=2)).sum(dim=2)
        assert worst(rebuilt, output) <= 1e-5
        assert branches.guidance == pytest.approx(1.75, abs=1e-4)
        assert branches.conditional is branches.predictions[1]


@pytest.mark.parametrize(
    ("name", "more"), [("qwen", {}), ("sd", {"guidance_rescale": 0.7})], ids=["normalised", "rescaled"]
)
def test_guidance_that_is_not_linear_is_refused(name, more):
    with pytest.raises(SteeringError, match=r"guidance is not linear: switch off guidance rescaling"):
        steps_of(row(name), **more)


def test_what_is_not_told_apart_is_refused():
    x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    half = fit_branches([torch.cat([x, y])], 0.4 * x + 0.6 * y).branches()
    assert half.coefficients == pytest.approx((0.4, 0.6))
    with pytest.raises(SteeringError, match="do not tell which branch is conditional"):
        _ = half.unconditional
    three = fit_branches([x, y, x * y], 4.0 * x - 2.5 * y - 0.5 * x * y).branches()
    with pytest.raises(SteeringError, match=r"3 branches with coefficients \(4.0, -2.5, -0.5\)"):
        _ = three.conditional
    with pytest.raises(SteeringError, match="no call of the denoiser was recorded"):
        fit_branches([], x)
    with pytest.raises(SteeringError, match=r"model output of shape \(4, 3\) is not made of"):
        fit_branches([torch.zeros(4, 5)], x)
    one = fit_branches([x], x).branches()
    assert torch.equal(one.conditional, x)
    assert one.guidance == 1.0


def test_negated_outputs_are_turned_round_and_variances_dropped():
    x, y = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    learned = torch.cat([torch.cat([x, y]), torch.ones(8, 3, 5)], dim=1)
    branches = fit_branches([learned], -(4.0 * y - 3.0 * x)).branches()
    assert branches.coefficients == pytest.approx((-3.0, 4.0))
    torch.testing.assert_close(branches.conditional, -y)
    torch.testing.assert_close(branches.unconditional, -x)


def test_half_precision_is_fitted_with_its_own_tolerance():
    case = row("sd")
    pipe = case.build().to(torch.bfloat16)
    tap, seen = DenoiserTap(pipe, record=True), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        seen.append(tap.branches(arguments["model_output"]))
        tap.end_step()

    with tap.attached():
        run(case, pipe, see, 3, 2)
    assert seen[0].predictions[0].dtype == torch.bfloat16
    assert 1e-6 < seen[0].residual < 6e-2


TIED = ["sd", "sdxl", "sd3", "flux_true_cfg", "pixart", "dit", "auraflow", "sana", "ltx", "wan", "cogvideox"]
TIED += ["animatediff"]


class Tying(Watching):
    """Guides by itself: the halves of the batch are the branches, and both get the same next state."""

    def __init__(self, scale: float) -> None:
        super().__init__(lambda *_: None)
        self.scale, self.halves = scale, []

    def on_step(self, scheduler, base_step, bound):
        arguments = bound.arguments
        conditional, unconditional = arguments["model_output"].chunk(2)
        self.halves.append((conditional.clone(), unconditional.clone()))
        arguments["model_output"] = torch.cat([unconditional + self.scale * (conditional - unconditional)] * 2)
        return base_step(*bound.args, **bound.kwargs)


def tied_call(case) -> dict[str, Any]:
    """The call with twice the batch: the prompt's rows, then the negative prompt's; no guidance; the same noise."""
    call = {**case.call(3, 3), "generator": generators(3) + generators(3)}
    off = "true_cfg_scale" if case.name == "flux_true_cfg" else "guidance_scale"
    call[off] = 1.0
    if case.name == "dit":
        return call | {"class_labels": [7] * 3 + [1000] * 3}  # 1000 is the label of no class
    for name in ("num_images_per_prompt", "num_videos_per_prompt", "negative_prompt"):
        call.pop(name, None)
    return call | {"prompt": [PROMPT] * 3 + [NEGATIVE] * 3}


@pytest.mark.parametrize("name", TIED)
def test_tied_batch_equals_the_tap(name):
    case = row(name)
    seen = steps_of(case)
    tying = Tying(max(case.branches))
    pipe = case.pipe
    with listening(pipe.scheduler, tying):
        pipe(**tied_call(case) | {"output_type": "np" if name == "dit" else "latent"})
    assert len(tying.halves) == 3
    for (_, _, branches), (conditional, unconditional) in zip(seen, tying.halves, strict=True):
        ours = branches.conditional[:3], branches.unconditional[:3]
        assert worst(ours[0], conditional) <= 1e-5
        assert worst(ours[1], unconditional) <= 1e-5
        assert worst(ours[0], unconditional) > 1e-4  # negative control: the other half is another function


def test_forgetting():
    case = row("sd")
    tap = DenoiserTap(case.pipe, record=True)
    with tap.attached():
        result(case, case.pipe, 3, 2)
        assert len(tap._calls) == 2
        tap.end_step()
        with pytest.raises(SteeringError, match="record=True, and ask before end_step"):
            tap.branches(torch.zeros(3, 4, 8, 8))
        result(case, case.pipe, 3, 2)
        tap.begin_run(3)
        assert not tap._calls
