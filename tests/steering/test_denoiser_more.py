"""Pipelines beside the zoo's: control networks, attention that looks across branches, and a second expert."""

from typing import Any

import diffusers as d
import pytest
import torch

from feynkac.steering.decode import decoder_for
from feynkac.steering.denoiser import DenoiserTap, denoisers_of
from feynkac.steering.errors import SteeringError

from . import zoo_parts as parts
from .tapping import run, worst
from .zoo import GUIDANCE, NEGATIVE, PROMPT, Row, media, row, sd_parts

pytestmark = pytest.mark.slow  # whole pipelines

TEXT = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "height": 16, "width": 16}


def _controlled() -> d.StableDiffusionControlNetPipeline:
    components = sd_parts()
    control = d.ControlNetModel.from_unet(components["unet"], conditioning_embedding_out_channels=(8, 8))
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.3)  # zero when made
    return d.StableDiffusionControlNetPipeline(**components, controlnet=control.eval())


def _perturbed() -> d.StableDiffusionPAGPipeline:
    return d.StableDiffusionPAGPipeline(**sd_parts(), pag_applied_layers="down_blocks.1")


def _two_experts() -> d.WanPipeline:
    wan = row("wan").make()
    second = parts.seeded(lambda: row("wan").make().transformer, seed=1)
    return d.WanPipeline(
        wan.tokenizer, wan.text_encoder, wan.vae, wan.scheduler, wan.transformer, second, boundary_ratio=0.9
    )


CONTROLLED = Row("controlled", _controlled, TEXT | {"image": parts.picture()})
PERTURBED = Row("perturbed", _perturbed, TEXT | {"pag_scale": 2.0})
EXPERTS = Row(
    "experts",
    _two_experts,
    row("wan").arguments,
    "num_videos_per_prompt",
    passes_generator=False,
    branches=(GUIDANCE, 1.0 - GUIDANCE),
)


@pytest.mark.parametrize("case", [CONTROLLED, PERTURBED, EXPERTS], ids=lambda case: case.name)
def test_pieces_copies_branches_and_gradients(case):
    pipe = case.pipe
    plain = run(case, pipe, lambda *_: None, 3, 3)
    for size in (1, 2):
        tap, seen = DenoiserTap(pipe, chunk_size=size, record=True), []
        tap.begin_run(3)

        def see(index: int, arguments: dict[str, Any], tap=tap, seen=seen) -> None:
            branches = tap.branches(arguments["model_output"])
            _, output = tap.differentiable(arguments["sample"], arguments["model_output"])
            assert branches.residual <= 1e-6
            assert worst(output.detach(), arguments["model_output"]) <= 1e-5
            seen.append(branches)
            tap.end_step()

        with tap.attached():
            assert worst(run(case, pipe, see, 3, 3), plain) <= 1e-5
        if len(seen[0].coefficients) == 2:
            assert seen[0].guidance == pytest.approx(GUIDANCE, abs=2e-3)
        else:  # text 4, perturbed attention 2: u + 4 (c - u) + 2 (c - p)
            assert seen[0].coefficients == pytest.approx((-3.0, 6.0, -2.0), abs=2e-2)


def test_every_expert_and_control_network_is_tapped():
    assert [type(m).__name__ for m in denoisers_of(CONTROLLED.pipe)] == ["UNet2DConditionModel", "ControlNetModel"]
    assert denoisers_of(EXPERTS.pipe) == (EXPERTS.pipe.transformer, EXPERTS.pipe.transformer_2)
    used: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(EXPERTS.pipe, name).register_forward_hook(lambda *_, name=name: used.append(name))
    run(EXPERTS, EXPERTS.pipe, lambda *_: None, 2, 3)
    assert set(used) == {"transformer", "transformer_2"}  # else the test above says nothing about the second


def test_attention_across_branches_needs_the_number_of_rows():
    tap = DenoiserTap(PERTURBED.pipe, chunk_size=1)
    with tap.attached(), pytest.raises(SteeringError, match=r"perturbed-attention guidance.*give populations"):
        run(PERTURBED, PERTURBED.pipe, lambda *_: None, 3, 2)


def test_pieces_without_all_branches_would_be_wrong(monkeypatch):
    """Negative control: perturbed attention in pieces of other rows."""
    plain = run(PERTURBED, PERTURBED.pipe, lambda *_: None, 3, 3)
    monkeypatch.setattr("feynkac.steering.denoiser.wrap.mixes_branches", lambda module: False)
    tap = DenoiserTap(PERTURBED.pipe, chunk_size=3)
    tap.begin_run(None)
    with tap.attached():
        assert worst(run(PERTURBED, PERTURBED.pipe, lambda *_: None, 3, 3), plain) > 1e-4


def test_silent_control_networks_let_the_pipeline_run():
    pipe = CONTROLLED.pipe
    tap = DenoiserTap(pipe)
    tap.silent = True
    with tap.attached():
        run(CONTROLLED, pipe, lambda _, a: pytest.fail("not zero") if a["model_output"].any() else None, 3, 2)
    assert tap.rows_evaluated == 0


def test_controlled_pipelines_are_decoded_by_their_own_ending():
    call = CONTROLLED.call(2, 2)
    latents = run(CONTROLLED, CONTROLLED.pipe, lambda *_: None, 2, 2)
    images = media(CONTROLLED.pipe(**CONTROLLED.call(2, 2, output_type="pt")))
    tail = decoder_for(CONTROLLED.pipe, kind="tail", call=call, output="pt")
    torch.testing.assert_close(tail(latents), images, atol=1e-6, rtol=0.0)
