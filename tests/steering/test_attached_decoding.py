"""Decoding and prompts under attach: a small autoencoder on the way, the pipeline's own at the end; one population a
prompt."""

import diffusers
import numpy as np
import pytest
import torch

from feynkac.steering import BatchLayoutError, FKSteering, attach
from feynkac.steering.decode import decoder_for
from feynkac.steering.rewards import Brightness

from .zoo import media, row
from .zoo_parts import seeded

pytestmark = pytest.mark.slow

SD = row("sd_eta1")


def tiny_autoencoder():
    return seeded(
        lambda: diffusers.AutoencoderTiny(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            encoder_block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            num_encoder_blocks=(1,),
            num_decoder_blocks=(1,),
        )
    ).eval()


class Seen:
    """A reward that keeps what it was given."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(images)
        return [float(np.asarray(image).mean()) for image in images]


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_small_autoencoder_on_the_way_and_the_full_one_at_the_end(chunk_size):
    pipe, reward = SD.build(), Seen()
    small = decoder_for(pipe, vae=tiny_autoencoder(), chunk_size=chunk_size)
    control = FKSteering(reward, scale=1.0)
    with attach(pipe, control, particles=3, seed=0, preview=small, chunk_size=chunk_size) as run:
        out = media(pipe(**SD.call(3, 4, output_type="pil")))
    images = [image for batch in reward.batches for image in batch]
    batches = [images[i : i + 3] for i in range(0, 15, 3)]
    assert len(images) == 15
    assert small.calls == 12  # four moves on the way
    sizes = [np.asarray(image).shape[0] for image in (batches[0][0], out[0])]
    assert sizes == [8, 16]  # this small one halves the resolution
    for image, judged in zip(out, batches[-1], strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(judged))
    assert run.calls.decoder == 15


def test_without_resampling_the_weights_do_not_depend_on_the_preview():
    """Other values on the way, taken back in the end."""
    weights = []
    for preview in (None, "small"):
        pipe = SD.build()
        small = None if preview is None else decoder_for(pipe, vae=tiny_autoencoder())
        control = FKSteering(Brightness(), scale=300.0)
        with attach(pipe, control, particles=4, seed=0, preview=small, ess_threshold=0.0) as run:
            pipe(**SD.call(8, 4, output_type="latent", generator=torch.Generator().manual_seed(0)))
        weights.append(run.log_weights)
        on_the_way = run.records[1].log_potential
    assert torch.allclose(*weights, atol=1e-9)
    assert not torch.allclose(on_the_way, torch.zeros_like(on_the_way))


def prompts(order, per_prompt):
    call = SD.call(1, 4, output_type="latent")
    call.pop("negative_prompt", None)
    call |= {"prompt": order, "num_images_per_prompt": per_prompt, "generator": torch.Generator().manual_seed(0)}
    return call


def test_two_prompts_are_two_populations():
    pipe = SD.build()
    control = FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=50.0, on="latents")
    with attach(pipe, control, particles=3, populations=2, seed=0, ess_threshold=1.1) as run:
        pipe(**prompts(["a red fox on the snow", "the sea"], 3))
    assert run.log_weights.shape == (2, 3)


def test_prompts_in_the_wrong_order_are_refused_before_anything_is_mixed():
    pipe = SD.build()
    control = FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=50.0, on="latents")
    mixed = ["a red fox on the snow", "the sea"] * 3
    with (
        pytest.raises(BatchLayoutError, match="encoder_hidden_states"),
        attach(pipe, control, particles=3, populations=2, seed=0),
    ):
        pipe(**prompts(mixed, 1))


def test_a_prompt_alone_or_with_another():
    """Ancestors of a prompt do not depend on what is beside it."""
    both = ["a red fox on the snow", "the sea"]
    runs = []
    for order in (both, both[:1]):
        pipe = SD.build()
        latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))[: 3 * len(order)]
        control = FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=500.0, on="latents")
        call = prompts(order, 3) | {"latents": latents, "generator": None}
        with attach(pipe, control, particles=3, seed=0, ess_threshold=1.1) as run:
            pipe(**call)
        runs.append(run)
    together, alone = runs
    for a, b in zip(together.ancestors, alone.ancestors, strict=True):
        assert torch.equal(a[:1], b)
    assert torch.allclose(together.log_weights[:1], alone.log_weights, atol=1e-3)
