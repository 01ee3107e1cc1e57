"""What steering costs beside the denoiser: processor time of the controller a step, and the calls it makes.

    python tests/benchmarks/bench_steering.py [--steps 200] [--repeats 9]

Thread processor time inside the scheduler's ``step``, less that of the scheduler's own step, so that a busy machine
and the denoiser do not count. The peer, run in turn with ours in one process, is a plain controller of forty lines:
softmax of log-weights, systematic resampling, gather, nothing carried, checked or recorded. K = 8, one thread, a reward
of a few microseconds (mean of the latents). The physical limit is reading and writing the particles once.
"""

import argparse
import platform
import statistics
import time
from contextlib import contextmanager

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from feynkac.steering import FKSteering, SoftValueGuidance, attach
from feynkac.steering.controller import Controller
from feynkac.steering.hook import listening
from feynkac.steering.testing import GaussianDenoiser

K = 8


def reward(x: torch.Tensor) -> torch.Tensor:
    """Mean of the latents."""
    return x.flatten(1).mean(dim=1)


def pipeline(size: int) -> DDIMPipeline:
    """A real pipeline with a denoiser that costs little."""
    denoiser = GaussianDenoiser(mean=0.5, std=0.8, sample_size=size)
    pipe = DDIMPipeline(denoiser, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Plain:
    """The peer: weigh by exp(r - r_before), resample at every step, move."""

    def on_run(self, scheduler):
        self.before = None
        self.generator = torch.Generator().manual_seed(0)

    def on_step(self, scheduler, base_step, bound):
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        x, eps, t = arguments["sample"], arguments["model_output"], arguments["timestep"]
        kept = scheduler.alphas_cumprod[t]
        clean = (x - (1 - kept).sqrt() * eps) / kept.sqrt()
        value = reward(clean).double()
        log_weights = value if self.before is None else value - self.before
        cumulative = log_weights.softmax(dim=0).cumsum(dim=0)
        places = (torch.arange(len(x)) + torch.rand((), generator=self.generator)) / len(x)
        rows = torch.searchsorted(cumulative, places.double()).clamp(max=len(x) - 1)
        self.before = value[rows]
        arguments["sample"], arguments["model_output"] = x[rows], eps[rows]
        return base_step(scheduler, **arguments)


def per_step(pipe, steps: int, attached, listener) -> float:
    """Microseconds a step of one run inside ``attached()``, spent in ``on_step`` of the class ``listener``."""
    spent = 0.0
    honest = listener.on_step

    def timed(self, scheduler, base_step, bound):
        nonlocal spent

        def base(*args, **kwargs):
            nonlocal spent
            begun = time.thread_time()
            result = base_step(*args, **kwargs)
            spent -= time.thread_time() - begun
            return result

        begun = time.thread_time()
        result = honest(self, scheduler, base, bound)
        spent += time.thread_time() - begun
        return result

    listener.on_step = timed
    try:
        with attached() as rows:
            generator = torch.Generator().manual_seed(0)
            pipe(batch_size=rows, num_inference_steps=steps, eta=1.0, generator=generator, output_type="np")
    finally:
        listener.on_step = honest
    return spent / steps * 1e6


def ours(pipe, *controls, **options):
    """A way to attach."""

    @contextmanager
    def attached():
        with attach(pipe, *controls, particles=K, seed=0, **options):
            yield K * max([c.candidates for c in controls] + [1])

    return attached


def peer(pipe):
    """The plain controller attached."""

    @contextmanager
    def attached():
        with listening(pipe.scheduler, Plain()):
            yield K

    return attached


def counted(pipe, control, steps: int) -> int:
    """Rows that the denoiser really ran."""
    rows = 0

    def count(module, inputs):
        nonlocal rows
        rows += len(inputs[0])

    handle = pipe.unet.register_forward_pre_hook(count)
    try:
        with attach(pipe, control, particles=K, seed=0):
            pipe(batch_size=K * control.candidates, num_inference_steps=steps, eta=1.0, output_type="np")
    finally:
        handle.remove()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread, K = {K}")
    for size in (1, 16, 64):
        pipe = pipeline(size)
        fk = FKSteering(reward, scale=1.0, on="latents")
        cases = {
            "attached, idle": ours(pipe),
            "a control that is not due": ours(pipe, FKSteering(reward, scale=1.0, on="latents", when=())),
            "x0-hat, reward, weights": ours(pipe, fk, ess_threshold=0.0),
            "and resampling at every step": ours(pipe, fk, ess_threshold=1.1),
            "soft value, M = 4": ours(pipe, SoftValueGuidance(reward, 1.0, 4, on="latents"), ess_threshold=1.1),
            "peer: plain resampling": peer(pipe),
        }
        times = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, attached in cases.items():
                listener = Plain if name.startswith("peer") else Controller
                times[name].append(per_step(pipe, options.steps, attached, listener))
        print(f"\n{size} x {size} x 1, microseconds a step: median (quartiles)")
        for name, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            print(f"  {name:32s} {middle:7.0f}  ({low:.0f}..{high:.0f})")
        pairs = zip(times["and resampling at every step"], times["peer: plain resampling"], strict=True)
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        print(f"  ours / peer: {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})")
    steps = 20
    pipe = pipeline(1)
    fk_rows = counted(pipe, FKSteering(reward, scale=1.0, on="latents"), steps)
    soft_rows = counted(pipe, SoftValueGuidance(reward, 1.0, 4, on="latents"), steps)
    print(f"\ndenoiser rows: FK {fk_rows} (K T = {K * steps}), soft value {soft_rows} (K M T = {K * 4 * steps})")


if __name__ == "__main__":
    main()
