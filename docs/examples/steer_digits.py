"""Steer the shipped model of handwritten digits, and compare with best-of-n at equal cost.

    python docs/examples/steer_digits.py [--populations 8] [--output steer_digits.png]

Three wishes: an eight (log-probability of a classifier), a small JPEG file, and both at once. Three ways, each with the
same number of denoiser calls: best of 32, FK steering with 32 particles, soft-value guidance with 8 particles of 4
candidates. Every way estimates the same tilted mean reward, so the error bars say which one to use.
"""

import argparse
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from feynkac.steering import FKSteering, Run, SoftValueGuidance, attach, every
from feynkac.steering.pixel_pipeline import load_pipeline
from feynkac.steering.rewards import ClassLogProb, JpegSize

N = 32
STEPS = 50
Wish = list[tuple[Any, float]]


def wishes() -> dict[str, Wish]:
    """Rewards and their scales."""
    eight = ClassLogProb(str(files("feynkac.data") / "digits_classifier"), label=8)
    small = JpegSize(quality=95)
    return {
        "an eight": [(eight, 1.0)],
        "a small file": [(small, 300.0)],
        "a small eight": [(eight, 1.0), (small, 300.0)],
    }


def ways(wish: Wish) -> dict[str, tuple[list[Any], int]]:
    """Controls and particles; particles x candidates = 32 in each. Early x0-hats are blurs that tell little: judge from
    30 % of the way on, every other step."""
    late = every(2, start=0.3)
    return {
        f"best of {N}": ([FKSteering(r, scale=s, when=()) for r, s in wish], N),
        f"FK steering, K = {N}": ([FKSteering(r, scale=s, when=late) for r, s in wish], N),
        f"soft values, K = {N // 4}, M = 4": (
            [SoftValueGuidance(r, 1 / s, candidates=4, when=late) for r, s in wish],
            N // 4,
        ),
    }


def steer(pipe: Any, controls: list[Any], particles: int, populations: int) -> tuple[np.ndarray, Run]:
    """Images (P, K, 8, 8) and the run."""
    with attach(pipe, *controls, particles=particles, populations=populations, seed=1) as run:
        images = pipe(
            class_labels=[None] * populations,
            num_images_per_label=N,
            num_inference_steps=STEPS,
            eta=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
    return np.asarray(images).reshape(populations, particles, 8, 8), run


def report(name: str, run: Run) -> str:
    """One line: tilted mean of each reward, evidence, effective sample size, cost."""
    weights, count = run.weights, len(run.log_evidence)
    parts = []
    for reward, values in run.rewards_by_control.items():
        means = (weights * values).sum(dim=1)
        error = means.std().item() / math.sqrt(count)
        parts.append(f"{reward} {means.mean().item():8.3f} +- {error:.3f}")
    spread = run.log_evidence.std().item()
    return (
        f"  {name:26s} {'  '.join(parts)}  log Z {run.log_evidence.mean().item():7.2f} (spread {spread:.2f})"
        f"  ESS {run.ess.mean().item():4.1f}  roots {run.distinct_roots.double().mean().item():4.1f}"
        f"  denoiser {run.calls.denoiser // count}  rewards {run.calls.reward // count}"
    )


def draw(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """A picture: one row a way, sixteen digits of the first population drawn by their weights."""
    figure, axes = plt.subplots(len(rows), 16, figsize=(11, 0.72 * len(rows) + 0.3))
    for (name, images), line in zip(rows, axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def drawn(images: np.ndarray, run: Run) -> np.ndarray:
    """Sixteen of the first population's images in proportion to their weights, likeliest first."""
    weights = run.weights[0]
    places = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    order = weights.argsort(descending=True)
    chosen = torch.searchsorted(weights[order].cumsum(0), places).clamp(max=len(weights) - 1)
    picked: np.ndarray = images[0][order[chosen].numpy()]
    return picked


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("steer_digits.png"))
    options = parser.parse_args()
    pipe = load_pipeline(str(files("feynkac.data") / "digits_diffusion"))
    pipe.set_progress_bar_config(disable=True)
    rows = []
    plain, run = steer(pipe, [FKSteering(lambda images: [0.0] * len(images), scale=1.0, when=())], N, 1)
    rows.append(("unsteered", drawn(plain, run)))
    for title, wish in wishes().items():
        print(title)
        for name, (controls, particles) in ways(wish).items():
            images, run = steer(pipe, controls, particles, options.populations)
            print(report(name, run))
            rows.append((f"{title}\n{name}", drawn(images, run)))
    draw(rows, options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
