"""The model output as a function of the sample: derivatives against differences of whole pipelines, and closed form."""

import math
from collections.abc import Callable
from typing import Any

import diffusers as d
import pytest
import torch
from torch import Tensor

from feynkac.steering.denoiser import DenoiserTap
from feynkac.steering.errors import SteeringError
from feynkac.steering.hook import listening
from feynkac.steering.testing import GaussianDenoiser

from .tapping import Watching, run, worst
from .zoo import MODULAR_ROWS, ROWS, generators, row

CHECKED = ["ddpm", "sd", "sdxl", "sd3", "flux", "flux_true_cfg", "dit", "wan", "ltx", "sd_inpaint9", "sd_pix2pix"]
CHECKED += ["svd"]
LINEAR = [case for case in (*ROWS, *MODULAR_ROWS) if case.name != "qwen"]


class Reached(Exception):
    """The second step has been seen; the rest of the run is not needed."""


class Forcing(Watching):
    """Replaces the state after the first step, shows the second step's arguments and ends the run."""

    def __init__(self, see: Callable[[dict[str, Any]], None], state: Tensor | None, tap: DenoiserTap | None) -> None:
        super().__init__(lambda index, arguments: None if index == 0 else see(arguments))
        self.state, self.tap = state, tap

    def on_step(self, scheduler, base_step, bound):
        result = super().on_step(scheduler, base_step, bound)
        if self.steps == 2:
            raise Reached
        if self.tap is not None:
            self.tap.end_step()
        if self.state is None:
            return result
        if isinstance(result, tuple):
            return (self.state, *result[1:])
        result["prev_sample"] = self.state
        return result


def second_step(case, pipe, see, state: Tensor | None = None, tap: DenoiserTap | None = None) -> None:
    """Run up to the second call of ``step``, from ``state``."""
    with listening(pipe.scheduler, Forcing(see, state, tap)), pytest.raises(Reached):
        pipe(**case.call(2, 4))


def output_at(case, pipe, state: Tensor) -> Tensor:
    """What the pipeline's own code makes of ``state``: the guided model output."""
    kept: list[Tensor] = []
    second_step(case, pipe, lambda arguments: kept.append(arguments["model_output"].double()), state)
    return kept[0]


def gradient_at(case, pipe, state: Tensor, probe: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """(gradient of sum(output x probe), probe) by the tap."""
    tap, kept = DenoiserTap(pipe, record=True, **options), []
    tap.begin_run(len(state))

    def see(arguments: dict[str, Any]) -> None:
        x, output = tap.differentiable(arguments["sample"], arguments["model_output"])
        assert x.is_leaf
        assert torch.equal(x, arguments["sample"])
        used = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.enable_grad():
            (output.double() * used).sum().backward()
        kept.append((x.grad.double(), used))

    with tap.attached():
        second_step(case, pipe, see, state, tap)
    return kept[0]


def typical_state(case, pipe) -> Tensor:
    kept: list[Tensor] = []
    second_step(case, pipe, lambda arguments: kept.append(arguments["sample"]))
    return kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_gradient_is_the_difference_quotient_of_the_pipeline(name):
    case = row(name)
    pipe = case.build().to(torch.float64)
    state = typical_state(case, pipe).double()
    if case.tiles == 2:
        state = torch.cat([state[: len(state) // 2]] * 2)
    gradient, probe = gradient_at(case, pipe, state)
    for seed in range(2):
        direction = torch.randn(state.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        width = 1e-3 * float(state.std())
        ends = [output_at(case, pipe, state + sign * width * direction) for sign in (1.0, -1.0)]
        slope = float(((ends[0] - ends[1]) * probe).sum()) / (2.0 * width)
        scale = float(gradient.norm())
        assert abs(float((gradient * direction).sum()) - slope) <= 2e-3 * scale
        wrong = float((gradient.roll(1, dims=-1) * direction).sum())  # negative control: a gradient one pixel off
        assert abs(wrong - slope) > 2e-2 * scale
    assert all(p.grad is None and p.requires_grad for module in DenoiserTap(pipe).modules for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_single_precision_and_pieces_have_the_same_gradient(name):
    case = row(name)
    pipe = case.build()
    state = typical_state(case, pipe)
    if case.tiles == 2:
        state = torch.cat([state[: len(state) // 2]] * 2)
    gradient, _ = gradient_at(case, pipe, state)
    in_pieces, _ = gradient_at(case, pipe, state, chunk_size=1)
    assert worst(in_pieces, gradient) <= 1e-4
    if name != "sd_inpaint9":  # its masked image is drawn from the autoencoder, with other numbers in float64
        double, _ = gradient_at(case, case.build().to(torch.float64), state.double())
        assert worst(gradient, double) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_value_is_the_model_output_on_every_pipeline(case):
    tap, seen = DenoiserTap(case.pipe, record=True), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        x, output = tap.differentiable(arguments["sample"], arguments["model_output"])
        (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
        seen.append((worst(output.detach(), arguments["model_output"]), bool(gradient.isfinite().all())))
        assert float(gradient.abs().max()) > 0.0
        tap.end_step()

    plain = run(case, case.pipe, lambda *_: None, 2, 3)
    with tap.attached():
        assert torch.equal(run(case, case.pipe, see, 2, 3), plain)
    assert max(error for error, _ in seen) <= 1e-5
    assert all(finite for _, finite in seen)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_closed_form(prediction):
    """Gaussian pixels: the prediction is affine in x, with a slope that is known."""
    mean, std = 0.3, 0.5
    scheduler = d.DDIMScheduler(clip_sample=False, prediction_type=prediction)
    unet = GaussianDenoiser.for_scheduler(scheduler, mean=mean, std=std, in_channels=2, sample_size=4)
    pipe = d.DDIMPipeline(unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    tap, steps = DenoiserTap(pipe, record=True), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        x, output = tap.differentiable(arguments["sample"], arguments["model_output"])
        (slope,) = torch.autograd.grad(output, x, torch.ones_like(output))
        kept = float(scheduler.alphas_cumprod[int(arguments["timestep"])])
        alpha, sigma = math.sqrt(kept), math.sqrt(1.0 - kept)
        gain = alpha * std**2 / (kept * std**2 + sigma**2)
        noise = (1.0 - alpha * gain) / sigma
        truth = {"epsilon": noise, "sample": gain, "v_prediction": alpha * noise - sigma * gain}[prediction]
        torch.testing.assert_close(slope, torch.full_like(slope, truth), rtol=1e-4, atol=1e-6)
        steps.append(truth)
        tap.end_step()

    with tap.attached(), listening(pipe.scheduler, Watching(see)):
        pipe(batch_size=3, num_inference_steps=5, generator=generators(3), output_type="np")
    assert len(steps) == 5


def test_what_cannot_be_differentiated_is_refused():
    case = row("sd")
    pipe = case.build()
    tap, seen = DenoiserTap(pipe, record=True), []

    def see(index: int, arguments: dict[str, Any]) -> None:
        sample, output = arguments["sample"], arguments["model_output"]
        with pytest.raises(SteeringError, match="hidden states are no multiple of the sample"):
            tap.differentiable(sample + 0.1 * sample.roll(1, dims=0), output)
        with pytest.raises(SteeringError, match=r"hidden states of shape \(4, 4, 8, 8\) are not made of"):
            tap.differentiable(torch.zeros(2, 4, 16, 16), output)
        with pytest.raises(SteeringError, match="inference_mode"), torch.inference_mode():
            tap.differentiable(sample, output)
        seen.append(index)
        tap.end_step()

    with tap.attached():
        run(case, pipe, see, 2, 2)
    assert seen == [0, 1]


def test_a_random_denoiser_is_noticed():
    """Negative control of the check of values."""
    case = row("sd")
    pipe = case.build()
    noise = torch.Generator().manual_seed(0)
    pipe.unet.register_forward_hook(
        lambda module, args, out: (out[0] * (1.0 + 0.01 * torch.rand(1, generator=noise)), *out[1:])
    )
    tap = DenoiserTap(pipe, record=True)

    def see(index: int, arguments: dict[str, Any]) -> None:
        tap.differentiable(arguments["sample"], arguments["model_output"])

    with tap.attached(), pytest.raises(SteeringError, match="the denoiser is random or keeps state"):
        run(case, pipe, see, 2, 2)


def test_copies_are_functions_of_their_originals():
    case, kept = row("sd"), {}
    for skipping in (False, True):
        tap = DenoiserTap(case.pipe, record=True)

        def see(index: int, arguments: dict[str, Any], tap=tap, skipping=skipping) -> None:
            if index == 1:
                before = tap.rows_evaluated
                x, output = tap.differentiable(arguments["sample"], arguments["model_output"])
                assert tap.rows_evaluated - before == (4 if skipping else 8)
                probe = torch.ones_like(output)
                probe[2:] = 0.0
                (kept[skipping],) = torch.autograd.grad(output, x, probe)
            tap.keep = torch.tensor([0, 1, 0, 1]) if skipping else None
            tap.end_step()

        with tap.attached():
            run(case, case.pipe, see, 4, 2, generator=generators(2) + generators(2))
    assert worst(kept[True], kept[False]) <= 1e-5
    assert not kept[True][2:].any()
