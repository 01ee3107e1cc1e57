"""What correctors cost beside the models: processor time a step, for attached ones and for ``sample_corrected``.

    python tests/benchmarks/bench_correctors_overhead.py [--steps 100] [--repeats 5] [--profile CASE]

Attached: thread processor time inside the scheduler's ``step``, less that of the scheduler's own step and of an
expert's model. Alone: that of ``sample_corrected``, less its experts' models. K = 8, one thread. Beside it the step of
a tiny real UNet (Stable Diffusion's blocks, 32 and 64 channels, guided, K = 8) on latents of the same size.
"""

import argparse
import cProfile
import functools
import os
import pstats
import statistics
import time

import diffusers
import torch
from machine import describe

from feynkac.fkc import Annealed as AnnealedLaw
from feynkac.fkc import Diffusion, Expert, sample_corrected
from feynkac.fkc import Product as ProductLaw
from feynkac.steering import Annealed, Guidance, Product, attach
from feynkac.steering.controller import Controller
from feynkac.steering.testing import GaussianDenoiser

K = 8
EVENTS = {"1": (1, 1), "64": (1, 8), "3x64x64": (3, 64)}


class TwoPriors(GaussianDenoiser):
    """Another prior where the prompt embedding is one than where it is zero, at little cost."""

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **conditioning):
        """The prediction, as a tuple."""
        given = encoder_hidden_states[:, 0, 0].reshape(-1, 1, 1, 1)
        alpha, sigma = (float(value) for value in self.levels(timestep))
        return (sigma * sample - alpha * 0.5 * given,)


def stable_diffusion(unet, scheduler):
    """The pipeline around a denoiser."""
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet, scheduler=scheduler, requires_safety_checker=False, **dict.fromkeys(names)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler():
    """DDIM that clips nothing."""
    return diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", steps_offset=1)


def called(pipe, steps, guidance, side, width=8):
    """One guided or unguided call."""
    pipe(
        prompt_embeds=torch.ones(1, 4, width),
        negative_prompt_embeds=torch.zeros(1, 4, width),
        num_images_per_prompt=K,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        height=8 * side,
        width=8 * side,
    )


class Stopwatch:
    """Processor time of what it wraps."""

    def __init__(self):
        self.spent = 0.0

    def around(self, function):
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            begun = time.thread_time()
            result = function(*args, **kwargs)
            self.spent += time.thread_time() - begun
            return result

        return timed


def attached(make, guidance, channels, side, steps):
    """Microseconds a step inside ``on_step`` beside the scheduler's step and the expert's model."""
    pipe = stable_diffusion(TwoPriors.for_scheduler(scheduler(), in_channels=channels, sample_size=side), scheduler())
    inner, outer = Stopwatch(), Stopwatch()
    control = make(inner, (channels, side, side))
    honest = Controller.on_step

    def on_step(self, scheduler, base_step, bound):
        return honest(self, scheduler, inner.around(base_step), bound)

    Controller.on_step = outer.around(on_step)
    try:
        with attach(pipe, control, particles=K, seed=0, transition="stochastic"):
            called(pipe, steps, guidance, side)
    finally:
        Controller.on_step = honest
    return (outer.spent - inner.spent) / steps * 1e6


def annealed(watch, shape):
    """The pipeline's own law to a power."""
    return Annealed(1.5)


def product(watch, shape):
    """Times another law."""
    predict = watch.around(lambda x, t: 0.3 * x)
    return Product(Expert(predict, Diffusion.vp(), "denoised", std=0.8, shape=shape))


def guidance(watch, shape):
    """Plain guidance with its weight."""
    return Guidance()


def alone(dtype, channels, side, steps, *, experts=1, known=False, **options):
    """Microseconds a step of ``sample_corrected`` beside its experts' models."""
    inner, outer = Stopwatch(), Stopwatch()
    shape = (channels, side, side)

    def log_density(x, t):
        return -0.5 * x.flatten(1).square().sum(dim=1)

    density = inner.around(log_density) if known else None
    laws = [
        Expert(inner.around(lambda x, t: -x), Diffusion.vp(), "score", std=0.8 + 0.1 * i, log_density=density)
        for i in range(experts)
    ]
    target = AnnealedLaw(laws[0], 1.5) if experts == 1 else ProductLaw(*laws)
    run = outer.around(sample_corrected)
    run(target, particles=K, steps=steps, shape=shape, dtype=dtype, seed=0, force=True, on_collapse="keep", **options)
    return (outer.spent - inner.spent) / steps * 1e6


def tiny_unet(channels, side, steps):
    """Microseconds a guided step of the tiny UNet."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64) if side > 1 else (32,),
        layers_per_block=1,
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D") if side > 1 else ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if side > 1 else ("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()
    watch = Stopwatch()
    called(stable_diffusion(unet, scheduler()), 2, 4.0, side, width=32)
    unet.forward = watch.around(unet.forward)
    called(stable_diffusion(unet, scheduler()), steps, 4.0, side, width=32)
    return watch.spent / steps * 1e6


CASES = {
    "(a) Annealed, attached": functools.partial(attached, annealed, 1.0),
    "(a) Annealed, attached, guided": functools.partial(attached, annealed, 4.0),
    "(b) Product with an expert, attached": functools.partial(attached, product, 1.0),
    "(c) Guidance, attached": functools.partial(attached, guidance, 4.0),
    "(d) sample_corrected, rates, float64": functools.partial(alone, torch.float64),
    "(d) sample_corrected, rates, float32": functools.partial(alone, torch.float32),
    "(d) kernel weights, known density": functools.partial(alone, torch.float64, known=True),
    "(d) kernel weights, tracked": functools.partial(alone, torch.float64, weights="kernel", noise=1.0),
    "(d) two experts, rates": functools.partial(alone, torch.float64, experts=2),
    "(d) two experts, rates, float32": functools.partial(alone, torch.float32, experts=2),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", default=None, help="beginning of a case's name: where its time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    if options.profile is not None:
        case = next(case for name, case in CASES.items() if name.startswith(options.profile))
        profile = cProfile.Profile()
        profile.runcall(case, 1, 8, options.steps)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    print(f"one thread, K = {K}, load average at the beginning {os.getloadavg()[0]:.1f}")
    for event, (channels, side) in EVENTS.items():
        few = max(3, options.steps // (10 if side > 8 else 2))
        units = [tiny_unet(channels, side, few) for _ in range(options.repeats)]
        unit = statistics.median(units)
        times: dict[str, list[float]] = {name: [] for name in CASES}
        for case in CASES.values():
            case(channels, side, 3)
        for _ in range(options.repeats):
            for name, case in CASES.items():
                times[name].append(case(channels, side, options.steps))
        print(f"\nevents of {event}; tiny UNet {unit:.0f} ({min(units):.0f}..{max(units):.0f}) microseconds a step")
        for name, values in times.items():
            middle = statistics.median(values)
            verdict = "" if middle <= max(500.0, 0.05 * unit) else "  over"
            spread = f"({min(values):.0f}..{max(values):.0f})"
            print(f"  {name:38s} {middle:7.0f}  {spread:16s} {middle / unit:7.1%}{verdict}")
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
