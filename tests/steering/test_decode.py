"""Decoders: the pipeline's own ending and the short cuts, against what the pipelines return."""

import inspect
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch
from PIL import Image

from feynkac.steering.decode import TailDecoder, decoder_for, has_family, running_call, tiles_of
from feynkac.steering.errors import SteeringError
from feynkac.steering.hook import listening

from . import zoo_parts as parts
from .zoo import MODULAR_ROWS, ROWS, SETTINGS, generators, media, row, with_setting

pytestmark = pytest.mark.slow  # dozens of whole pipelines

FAST = [case for case in ROWS if case.name != "sd_inpaint4"]
BITS = 0.5 / 255


def named(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


def pictures(value: Any) -> np.ndarray:
    """PIL images, lists of frames or tensors as (n, ...) in [0, 1], channels last."""
    if isinstance(value, torch.Tensor):
        return value.movedim(-3, -1).float().numpy()
    if isinstance(value, list):
        return np.stack([pictures(entry) for entry in value])
    return np.asarray(value) / 255.0 if isinstance(value, Image.Image) else np.asarray(value)


class Final:
    """Keeps the last state, and decodes x0-like states on the way if asked."""

    def __init__(self, case, decoders=(), at=None) -> None:
        self.case, self.decoders, self.at = case, decoders, at
        self.steps, self.latents, self.decoded = 0, None, []

    def on_run(self, scheduler) -> None:
        for decoder in self.decoders:
            decoder.begin()

    def on_step(self, scheduler, base_step, bound: inspect.BoundArguments) -> Any:
        result = base_step(*bound.args, **bound.kwargs)
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        self.latents = previous[: len(previous) // self.case.tiles].clone()
        if self.at is None or self.steps == self.at:
            self.decoded = [decoder(self.latents) for decoder in self.decoders]
        self.steps += 1
        return result


def run(case, pipe, *decoders, particles=3, steps=3, at=None, output="pil", **more):
    call = case.call(particles, steps, output_type=output, **more)
    final = Final(case, decoders, at)
    with listening(pipe.scheduler, final):
        result = media(pipe(**call))
    return result, final


@pytest.mark.parametrize("output", ["pil", "pt"])
@pytest.mark.parametrize("case", **named(ROWS))
def test_tail_is_the_pipelines_own_output(case, output):
    if output == "pt" and case.name in ("ddpm", "ddim"):
        output = "np"
    tail = decoder_for(case.pipe, kind="tail", output="pil" if output == "pil" else "pt")
    result, final = run(case, case.pipe, tail, output=output)
    assert isinstance(tail, TailDecoder)
    np.testing.assert_array_equal(pictures(final.decoded[0]), pictures(result))
    assert tail.calls == 3 * final.steps


@pytest.mark.parametrize("case", **named(FAST))
def test_fast_is_tail_is_the_pipelines_own_output(case):
    assert has_family(case.pipe)
    fast, tail = (decoder_for(case.pipe, kind=kind, output="pt") for kind in ("family", "tail"))
    result, final = run(case, case.pipe, fast, tail, output="np")
    ours, reference = (pictures(value) for value in final.decoded)
    np.testing.assert_allclose(ours, reference, atol=1e-6)
    np.testing.assert_allclose(ours, pictures(list(result)), atol=1e-6)
    images = decoder_for(case.pipe, call=case.call(3, 3))(final.latents)
    assert isinstance(images, list)
    assert len(images) == 3
    first = images[0][0] if case.media == "videos" and isinstance(images[0], list) else images[0]
    assert isinstance(first, (Image.Image, np.ndarray))


@pytest.mark.parametrize("case", **named(MODULAR_ROWS))
def test_fast_decoders_serve_modular_pipelines(case):
    fast = decoder_for(case.pipe, output="pt")
    result, final = run(case, case.pipe, fast, output="np")
    np.testing.assert_allclose(pictures(final.decoded[0]), pictures(list(result)), atol=1e-6)
    with pytest.raises(SteeringError, match="modular pipeline"):
        decoder_for(case.pipe, kind="tail")


@pytest.mark.parametrize("case", **named(ROWS))
def test_decoding_in_the_middle_leaves_the_run_alone(case):
    plain, _ = run(case, case.pipe, output="np")
    tail = decoder_for(case.pipe, kind="tail")
    listened, final = run(case, case.pipe, tail, decoder_for(case.pipe), output="np", at=0)
    np.testing.assert_array_equal(pictures(list(listened)), pictures(list(plain)))
    assert len(final.decoded[0]) == len(final.decoded[1]) == 3


@pytest.mark.parametrize("case", **named([c for c in ROWS if c.name != "sd_inpaint4"]))
@pytest.mark.parametrize("kind", ["tail", "family"])
def test_chunks_change_nothing_but_memory(case, kind):
    whole, chunked = (decoder_for(case.pipe, kind=kind, chunk_size=size, output="pt") for size in (None, 2))
    _, final = run(case, case.pipe, whole, chunked, at=2 if case.name != "sd_img2img" else 1)
    np.testing.assert_allclose(pictures(final.decoded[1]), pictures(final.decoded[0]), atol=1e-5)
    assert whole.calls == chunked.calls == 3


def test_autoencoder_sees_no_more_than_a_chunk(monkeypatch):
    pipe, seen = row("sd").build(), []
    plain = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda x, *a, **k: (seen.append(len(x)), plain(x, *a, **k))[1])
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(decoder_for(pipe, chunk_size=2)(latents)) == 5
    assert seen == [2, 2, 1]


def test_blended_inpainting_is_decoded_by_the_tail_alone():
    """The short cut would leave the known half unblended: off by far more than rounding."""
    case = row("sd_inpaint4")
    assert not has_family(case.pipe)
    assert isinstance(decoder_for(case.pipe, chunk_size=1), TailDecoder)
    with pytest.raises(SteeringError, match="no fast decoder for StableDiffusionInpaintPipeline"):
        decoder_for(case.pipe, kind="family")
    other = decoder_for(row("sd").pipe, kind="family")
    other.pipe = case.pipe
    state = decoder_for(case.pipe, kind="tail", output="pil")

    class Before(Final):
        def on_step(self, scheduler, base_step, bound):
            result = super().on_step(scheduler, base_step, bound)
            self.unblended = other(self.latents)
            return result

    final = Before(case, (state,))
    with listening(case.pipe.scheduler, final):
        result = media(case.pipe(**case.call(3, 3)))
    np.testing.assert_array_equal(pictures(final.decoded[0]), pictures(result))
    assert np.abs(pictures(final.unblended) - pictures(result)).max() > 4 * BITS


@pytest.mark.parametrize("case", [s for s in SETTINGS if s.supported], ids=lambda s: s.name)
def test_tail_works_under_every_scheduler(case):
    pipe, base = with_setting(case)
    tail = decoder_for(pipe, kind="tail")
    final = Final(base, (tail,))
    with listening(pipe.scheduler, final):
        result = media(pipe(**base.call(2, 4, **case.arguments)))
    np.testing.assert_array_equal(pictures(final.decoded[0]), pictures(result))


def test_user_generators_are_not_advanced():
    case = row("sd_img2img")
    call = case.call(2, 4)
    given = call["generator"]
    case.pipe(**call)
    plain = [g.get_state() for g in given]
    call = case.call(2, 4)
    final = Final(case, (decoder_for(case.pipe, kind="tail"),))
    with listening(case.pipe.scheduler, final):
        case.pipe(**call)
    assert all(torch.equal(a, b.get_state()) for a, b in zip(plain, call["generator"], strict=True))


def test_denoiser_is_not_asked_and_its_hooks_do_not_fire():
    pipe, count = row("sd").build(), []
    handle = pipe.unet.register_forward_hook(lambda *_: count.append(1))
    run(row("sd"), pipe, decoder_for(pipe, kind="tail"), steps=3)
    assert len(count) == 3
    handle.remove()
    assert "forward" not in vars(pipe.unet)


def test_arguments_are_read_off_the_running_call():
    case, seen = row("sd"), []

    class Reading(Final):
        def on_run(self, scheduler):
            seen.append(running_call(case.pipe))

        def on_step(self, scheduler, base_step, bound):
            again = running_call(case.pipe, seen[0])
            assert again is seen[0]
            return super().on_step(scheduler, base_step, bound)

    call = case.call(2, 3)
    with listening(case.pipe.scheduler, Reading(case)):
        case.pipe(**call)
    found = seen[0]
    assert found.arguments == call  # the prompt as a text, not as the embedding that the call has made of it
    assert (found.get("height"), found.get("width")) == (16, 16)
    replayed = found.replayed()["generator"]
    fresh = generators(2)
    assert [torch.rand(1, generator=g) for g in replayed] == [torch.rand(1, generator=g) for g in fresh]
    assert running_call(case.pipe) is None


def test_positional_arguments_are_read_too():
    pipe = row("sd").pipe
    tail = decoder_for(pipe, kind="tail")
    final = Final(row("sd"), (tail,))
    with listening(pipe.scheduler, final):
        result = pipe("a red fox", 16, 16, 3, generator=torch.Generator().manual_seed(0)).images
    np.testing.assert_array_equal(pictures(final.decoded[0]), pictures(result))


def test_each_call_in_a_block_is_read_anew():
    pipe, case = row("flux").pipe, row("flux")
    tail, fast = decoder_for(pipe, kind="tail"), decoder_for(pipe)
    final = Final(case, (tail, fast))
    with listening(pipe.scheduler, final):
        for size in (16, 24):
            result = media(pipe(**case.call(2, 2, height=size, width=16)))
            for decoded in final.decoded:
                np.testing.assert_allclose(pictures(decoded), pictures(result), atol=BITS)


def test_outside_of_a_call_arguments_are_asked_for():
    pipe = row("sd").pipe
    latents = torch.zeros(2, 4, 8, 8)
    with pytest.raises(SteeringError, match="with the call's arguments given"):
        decoder_for(pipe, kind="tail")(latents)
    given = decoder_for(pipe, kind="tail", call=row("sd").call(2, 4))
    np.testing.assert_allclose(pictures(given(latents)), pictures(decoder_for(pipe)(latents)), atol=BITS)


def test_a_call_that_keeps_no_arguments_is_refused():
    class Undecorated(d.StableDiffusionPipeline):
        def __call__(self, prompt):
            return running_call(self)

    pipe = Undecorated(**row("sd").pipe.components, requires_safety_checker=False)
    with pytest.raises(SteeringError, match=r"not decorated with torch\.no_grad"):
        pipe("a fox")


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("kind", ["tail", "family"])
def test_a_tiny_autoencoder_stands_in(name, kind):
    """As if the pipeline had it: that is how published tiny autoencoders are used."""
    case = row(name)
    tiny = parts.seeded(
        lambda: d.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).eval()
    )
    decoder = decoder_for(case.pipe, kind=kind, vae=tiny)
    full, final = run(case, case.pipe, decoder)
    assert np.abs(pictures(final.decoded[0]) - pictures(full)).max() > 4 * BITS
    pipe = case.build()
    pipe.vae = tiny
    wanted, _ = run(case, pipe)
    np.testing.assert_allclose(pictures(final.decoded[0]), pictures(wanted), atol=2 * BITS)
    assert case.pipe.vae is not tiny


def test_half_precision_latents_and_float32_predictions():
    pipe = row("sd").build().to(torch.bfloat16)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for kind in ("family", "tail"):
        images = decoder_for(pipe, kind=kind, call=row("sd").call(2, 4))(latents)
        assert [image.size for image in images] == [(16, 16)] * 2


def test_tiles():
    assert [tiles_of(case.pipe) for case in ROWS] == [case.tiles for case in ROWS]


@pytest.mark.parametrize("option", [{"kind": "slow"}, {"output": "jpg"}, {"chunk_size": 0}])
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        decoder_for(row("sd").pipe, **option)
