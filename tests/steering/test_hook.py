"""The class swap: unnoticed by the pipeline, by isinstance, by saving and copying, and gone when the block is left."""

import copy
import inspect
import json
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch

from feynkac.steering.errors import SteeringError
from feynkac.steering.hook import listening

from . import zoo_parts as parts
from .zoo import MODULAR_ROWS, ROWS, SETTINGS, media, row, with_setting

pytestmark = pytest.mark.slow  # dozens of whole pipelines


class Identity:
    """Does nothing but count."""

    def __init__(self) -> None:
        self.runs = self.steps = 0

    def on_run(self, scheduler: Any) -> None:
        self.runs += 1

    def on_step(self, scheduler: Any, base_step: Any, bound: inspect.BoundArguments) -> Any:
        self.steps += 1
        return base_step(*bound.args, **bound.kwargs)


class Shifting(Identity):
    """Negative control: a listener that changes what the scheduler returns."""

    def on_step(self, scheduler: Any, base_step: Any, bound: inspect.BoundArguments) -> Any:
        result = super().on_step(scheduler, base_step, bound)
        if isinstance(result, tuple):
            return (result[0] + 0.5, *result[1:])
        result["prev_sample"] = result.prev_sample + 0.5
        return result


def arrays(output: Any) -> np.ndarray:
    value = media(output)
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return np.stack([np.asarray(frames if not isinstance(frames, list) else np.stack(frames)) for frames in value])


@pytest.mark.parametrize("case", [*ROWS, *MODULAR_ROWS], ids=lambda case: case.name)
def test_listening_changes_no_bit(case):
    pipe = case.pipe
    plain = arrays(pipe(**case.call(2, 4, output_type="np")))
    identity = Identity()
    with listening(pipe.scheduler, identity):
        listened = arrays(pipe(**case.call(2, 4, output_type="np")))
    np.testing.assert_array_equal(listened, plain)
    assert identity.runs == 1
    assert identity.steps == (3 if case.name == "sd_img2img" else 4)
    after = arrays(pipe(**case.call(2, 4, output_type="np")))
    np.testing.assert_array_equal(after, plain)
    assert identity.steps == (3 if case.name == "sd_img2img" else 4)


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.permutable], ids=lambda s: s.name)
def test_listening_changes_no_bit_under_any_scheduler(case):
    pipe, base = with_setting(case)

    def run() -> torch.Tensor:  # the sd3 pipeline passes no generator on, so that the noise is global
        return parts.seeded(lambda: media(pipe(**base.call(2, 8, output_type="latent", **case.arguments))))

    plain = run()
    identity = Identity()
    with listening(pipe.scheduler, identity):
        listened = run()
    assert torch.equal(listened, plain)
    assert identity.steps == case.calls


@pytest.mark.parametrize("name", ["ddpm", "sd", "flux", "cogvideox_dpm"])
def test_a_listener_that_acts_is_seen(name):
    """Negative control of the two tests above."""
    case = row(name)
    plain = arrays(case.pipe(**case.call(2, 4, output_type="np")))
    with listening(case.pipe.scheduler, Shifting()):
        shifted = arrays(case.pipe(**case.call(2, 4, output_type="np")))
    assert np.abs(shifted - plain).max() > 1e-3


def test_the_scheduler_looks_like_itself():
    pipe = row("cogvideox_dpm").pipe
    base = type(pipe.scheduler)
    signatures = [inspect.signature(base.step), inspect.signature(base.set_timesteps)]
    names = {c.__name__ for c in pipe.scheduler.compatibles}
    with listening(pipe.scheduler, Identity()):
        scheduler = pipe.scheduler
        assert isinstance(scheduler, d.CogVideoXDPMScheduler)
        cls = type(scheduler)
        assert (cls.__name__, cls.__qualname__, cls.__module__) == (base.__name__, base.__qualname__, base.__module__)
        assert [inspect.signature(cls.step), inspect.signature(cls.set_timesteps)] == signatures
        assert "generator" in inspect.signature(scheduler.step).parameters
        assert {c.__name__ for c in scheduler.compatibles} == names
        assert len(scheduler) == 1000
    assert type(pipe.scheduler) is base
    assert not [name for name in vars(pipe.scheduler) if "feynkac" in name]


def public(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3", "wan"])
def test_saved_inside_a_block_it_is_a_plain_pipeline(name, tmp_path):
    case = row(name)
    pipe = case.build()
    plain = arrays(pipe(**case.call(2, 3, output_type="np")))
    base = type(pipe.scheduler)
    with listening(pipe.scheduler, Identity()):
        pipe.save_pretrained(tmp_path / "pipe")
    assert "feynkac" not in "".join(p.read_text() for p in (tmp_path / "pipe").rglob("*.json"))
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", base.__name__]
    again = type(pipe).from_pretrained(tmp_path / "pipe", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is base
    assert public(again.scheduler) == public(pipe.scheduler)
    call = case.call(2, 3, output_type="np")
    np.testing.assert_allclose(arrays(again(**call)), plain, atol=1e-5)  # other memory alignment, other last digits


def test_a_copy_has_the_same_listener_until_the_block_is_left():
    """Two-stream pipelines copy their scheduler inside the call."""
    identity = Identity()
    scheduler = d.UniPCMultistepScheduler()
    x = torch.zeros(1, 4, 2, 2)
    with listening(scheduler, identity):
        scheduler.set_timesteps(4)
        twin = copy.deepcopy(scheduler)
        twin.step(x, scheduler.timesteps[0], x)
        assert identity.steps == 1
        assert (twin.step_index, scheduler.step_index) == (1, None)
    twin.step(x, scheduler.timesteps[1], x)
    assert (identity.steps, twin.step_index) == (1, 2)
    twin.set_timesteps(4)
    assert identity.runs == 1


def test_classes_made_from_a_listening_scheduler_work():
    scheduler = d.HeunDiscreteScheduler()  # calls set_timesteps while it is built
    with listening(scheduler, Identity()):
        other = type(scheduler).from_config(scheduler.config)
    assert isinstance(other, d.HeunDiscreteScheduler)
    other.set_timesteps(3)
    assert len(other.timesteps) == 5


def test_another_pipeline_from_the_same_parts_is_listened_to():
    pipe = row("sd").build()
    identity = Identity()
    with listening(pipe.scheduler, identity):
        other = d.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        other(**row("sd_img2img").call(2, 4))
        pipe.to(torch.float32)
    assert identity.steps == 3
    assert type(other.scheduler) is type(pipe.scheduler) is d.DDIMScheduler


def test_an_exception_inside_restores():
    pipe = row("sd").build()

    class Failing(Identity):
        def on_step(self, scheduler, base_step, bound):
            if self.steps == 2:
                raise RuntimeError("reward failed")
            return super().on_step(scheduler, base_step, bound)

    plain = arrays(pipe(**row("sd").call(2, 4, output_type="np")))
    with pytest.raises(RuntimeError, match="reward failed"), listening(pipe.scheduler, Failing()):
        pipe(**row("sd").call(2, 4))
    assert type(pipe.scheduler) is d.DDIMScheduler
    np.testing.assert_array_equal(arrays(pipe(**row("sd").call(2, 4, output_type="np"))), plain)


def test_two_attachments_are_refused_and_two_in_a_row_are_not():
    scheduler = d.DDIMScheduler()
    with listening(scheduler, Identity()):
        with pytest.raises(SteeringError, match="attached to this DDIMScheduler already"):
            listening(scheduler, Identity()).__enter__()
        assert isinstance(scheduler, d.DDIMScheduler)
    with listening(scheduler, Identity()):
        scheduler.set_timesteps(3)


def test_what_is_no_scheduler_is_refused():
    class Clock:
        pass

    with pytest.raises(SteeringError, match="Clock is no scheduler"):
        listening(Clock(), Identity()).__enter__()
