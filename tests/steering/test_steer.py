"""The one-liner: enough samples of each prompt however the pipeline wants to be asked, one seed for everything."""

import numpy as np
import pytest
import torch

from feynkac.steering import FKSteering, SoftValueGuidance, SteeringError, best_of_n, steer
from feynkac.steering.asking import batched_call, populations_of

from .gaussian_pipe import gaussian_pipe
from .zoo import ROWS, media, row

PIPE = gaussian_pipe()
COUNTED = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size", "generator")


def mean(x):
    return x.flatten(1).double().mean(dim=1)


def plain_call(case, **more):
    """The row's call for one prompt, without what sets the number of samples."""
    call = {name: value for name, value in case.call(1, 4).items() if name not in COUNTED}
    if case.many_by in ("prompt", "class_labels"):
        call = {name: value[0] if isinstance(value, list) else value for name, value in call.items()}
    return call | {"output_type": "np"} | more


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You have passed 3 text prompts:FutureWarning")  # InstructPix2Pix, of its own image
@pytest.mark.parametrize(
    "case", [r for r in ROWS if r.many_by != "image_embeddings" and not r.rows_are_bound], ids=lambda r: r.name
)
def test_every_pipeline_can_be_asked(case):
    def once(seed):
        control = FKSteering(mean, scale=300.0, on="latents")
        return steer(case.build(), control, particles=3, seed=seed, transition="auto", **plain_call(case))[1]

    run = once(1)
    assert run.log_weights.shape == (1, 3)
    assert torch.equal(run.samples(), once(1).samples())  # the seed is that of the initial noise too
    assert not torch.equal(run.samples(), once(2).samples())


@pytest.mark.slow
def test_several_prompts_are_several_populations_and_independent():
    case = row("sd_eta1")
    call = plain_call(case) | {"prompt": ["a red fox on the snow", "the sea"], "negative_prompt": ["fog", "fog"]}
    control = FKSteering(mean, scale=300.0, on="latents")
    _, both = steer(case.build(), control, particles=3, seed=1, **call)
    _, first = steer(
        case.build(), control, particles=3, seed=1, **call | {"prompt": call["prompt"][:1], "negative_prompt": ["fog"]}
    )
    assert both.log_weights.shape == (2, 3)
    assert torch.allclose(both.samples()[:3], first.samples(), atol=1e-4)
    for a, b in zip(both.ancestors, first.ancestors, strict=True):
        assert (a is None) == (b is None) or torch.equal(a[:1], b)


@pytest.mark.slow
def test_in_lock_step():
    case = row("sd_eta1")
    control = SoftValueGuidance(mean, temperature=0.01, candidates=2, on="latents")
    outputs, run = steer(case.build(), control, particles=2, seed=1, runner="lockstep", **plain_call(case))
    assert len(outputs) == 2
    assert run.log_weights.shape == (1, 2)
    _, batch = steer(case.build(), control, particles=2, seed=1, **plain_call(case))
    torch.testing.assert_close(run.samples(), batch.samples(), rtol=0, atol=1e-4)  # one seed, one result
    with pytest.raises(ValueError, match="runner: got 'threads'"):
        steer(case.build(), control, particles=2, seed=1, runner="threads", **plain_call(case))


def test_the_number_of_samples_is_steerings():
    control = FKSteering(mean, scale=1.0, on="latents")
    with pytest.raises(SteeringError, match="batch_size: is set from particles"):
        steer(PIPE, control, particles=4, seed=0, batch_size=4)
    with pytest.raises(SteeringError, match="has no prompt to repeat"):
        batched_call(object(), 4, 1, {})


def test_populations_are_counted_by_what_the_call_names():
    assert populations_of({"prompt": "a fox"}) == 1
    assert populations_of({"prompt": ["a fox", "the sea"]}) == 2
    assert populations_of({"class_labels": 3}) == 1
    assert populations_of({"class_labels": [3, None]}) == 2
    assert populations_of({"prompt_embeds": torch.zeros(5, 4, 8)}) == 5


def test_best_of_n_says_which_is_best_and_what_all_weigh():
    output, run = best_of_n(
        PIPE, mean, n=6, seed=0, on="latents", populations=2, num_inference_steps=5, output_type="np"
    )
    assert media(output).shape[0] == 12
    rewards = run.samples().flatten().double().reshape(2, 6)
    assert torch.allclose(run.rewards, rewards)
    assert torch.equal(run.best, rewards.argmax(dim=1))
    assert torch.allclose(run.log_weights, rewards)
    assert run.calls.denoiser == 12 * 5
    assert run.calls.reward == 12


def test_auto_moves_by_the_scheduler_where_it_adds_noise_and_says_so_where_it_does_not():
    control = FKSteering(mean, scale=1.0, on="latents")
    call = {"particles": 4, "seed": 0, "transition": "auto", "num_inference_steps": 5, "output_type": "np"}
    _, own = steer(PIPE, control, eta=1.0, **call)
    _, ours = steer(PIPE, control, eta=0.0, **call)
    assert not own.notes
    assert "adds no noise" in ours.notes[0]
    assert np.isfinite(ours.log_evidence.item())
