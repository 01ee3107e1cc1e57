"""Annealing a mixture of forty Gaussians to a third of its temperature, beside the published scheme.

    python tests/benchmarks/bench_corrected.py [--particles 10000] [--steps 100 1000] [--seeds 3]

q is a mixture of 40 equal Gaussians in the plane (means uniform in [-40, 40]^2, width log(1 + e^2), all over 50); the
target q^3 is known exactly, because an integer power of a mixture is a mixture. The published scheme (Skreta et al.
2025) is the plain gauge with kappa = 1, rates, and systematic resampling at every step; the peers run in turn in one
process. Mode mass: total variation between the weighted masses of the nearest modes and the exact ones; the floor is
that of as many exact draws.
"""

import argparse
import math
import statistics
import time

import torch

from feynkac.fkc import Annealed, Diffusion, sample_corrected
from feynkac.fkc.testing.experts import MixtureLaw

BETA = 3


def forty() -> MixtureLaw:
    """The mixture."""
    generator = torch.Generator().manual_seed(0)
    means = ((torch.rand((40, 2), generator=generator) - 0.5) * 80.0).double() / 50.0
    return MixtureLaw(means, (1.0,) * 40, math.log1p(math.exp(2.0)) / 50.0)


def masses(x: torch.Tensor, weights: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Weight of every mode (40,)."""
    nearest = torch.cdist(x, means).argmin(dim=1)
    return torch.zeros(len(means), dtype=torch.float64).index_add(0, nearest, weights)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    law, k = forty(), options.particles
    diffusion = Diffusion.ve(0.01, 10.0)
    exact, log_integral = law.power(BETA)
    even = torch.full((k,), 1.0 / k, dtype=torch.float64)
    n = 2_000_000
    truth = masses(
        exact.sample(n, generator=torch.Generator().manual_seed(1)), torch.full((n,), 1.0 / n).double(), law.means
    )
    floor = [
        0.5 * (masses(exact.sample(k, generator=torch.Generator().manual_seed(s)), even, law.means) - truth).abs().sum()
        for s in range(2, 2 + options.seeds)
    ]
    print(f"floor, {k} exact draws: {statistics.mean(float(f) for f in floor):.3f}")
    scored = law.expert(diffusion, known_density=False)
    known = law.expert(diffusion)
    ways = {
        "published: plain, kappa 1, rate, every step": (
            scored,
            {"gauge": "plain", "noise": 1.0, "weights": "rate", "ess_threshold": 1.1},
        ),
        "plain, kappa 1, rate, ESS 0.5": (scored, {"gauge": "plain", "noise": 1.0, "weights": "rate"}),
        "plain, kappa 3, rate": (scored, {"gauge": "plain", "noise": 3.0, "weights": "rate"}),
        "reference, kappa 3, rate": (scored, {"noise": 3.0, "weights": "rate"}),
        "reference, kappa 3, kernel": (known, {"noise": 3.0, "weights": "kernel"}),
        "fitted, kappa 3, rate": (scored, {"gauge": "fitted", "noise": 3.0}),
        "score control, kappa 1, rate": (scored, {"control": "score", "noise": 1.0}),
        "least squares, kappa 1, rate": (scored, {"control": "least_squares", "noise": 1.0}),
        "least squares, kappa 3, rate": (scored, {"control": "least_squares", "noise": 3.0}),
        "reference, kappa 3, no weights": (scored, {"noise": 3.0, "weights": "none"}),
    }
    for steps in options.steps:
        print(f"\n{steps} steps, {steps + 1} score calls a particle, {options.seeds} seeds")
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for seed in range(options.seeds):
            for name, (expert, choices) in ways.items():
                begun = time.thread_time()
                samples = sample_corrected(
                    Annealed(expert, float(BETA)), particles=k, steps=steps, seed=seed, force=True, **choices
                )
                seconds = time.thread_time() - begun
                mass = masses(samples.x[0], samples.population.weights[0], law.means)
                distance = 0.5 * float((mass - truth).abs().sum())
                found[name].append((distance, float(samples.log_evidence[0]) - log_integral, seconds))
        for name, rows in found.items():
            distances, gaps, seconds = (list(column) for column in zip(*rows, strict=True))
            print(
                f"  {name:45s} mode-TV {statistics.mean(distances):.3f} ({min(distances):.3f}..{max(distances):.3f})  "
                f"log Z off by {statistics.mean(gaps):+.2f}  {statistics.mean(seconds):.1f} s"
            )


if __name__ == "__main__":
    main()
