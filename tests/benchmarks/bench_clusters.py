"""Two clusters annealed from T = 2 by small diffusion models, beside the published scheme.

    python tests/benchmarks/bench_clusters.py [--quick] [--particles 500] [--steps 200] [--seeds 3] [--systems ...]

Lennard-Jones 13 and double well 4 (:mod:`feynkac.fkc.testing.clusters`); the shipped models saw T = 2 only, the
references are long Markov chains with replica exchange (`data/scripts/train_clusters.py`). The published scheme (Skreta
et al. 2025) is the plain gauge with rates and systematic resampling at every step, with kappa = 1 (target score) or
1/beta (tempered noise). Scores: Wasserstein distances of the pair distances and of the energies, from the weighted
particles themselves; nothing is clipped. Published values are of another model trained on other data and with other
particle numbers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from machine import describe
from safetensors.torch import load_file
from torch import Tensor

from feynkac.fkc import Annealed, Diffusion, Expert, WeightedSamples, sample_corrected
from feynkac.fkc.testing.clusters import Cluster, wasserstein
from feynkac.molecular.diffusion.graph import GraphDenoiser

TRAINED_AT = 2.0
PATH = Diffusion.ve(0.005, 10.0)
SYSTEMS = {
    "lennard_jones_13": (Cluster.lennard_jones(), (1.5, 0.8)),
    "double_well_4": (Cluster.double_well(), (1.0, 0.8)),
}
# What sample_corrected is given; a function of the exponent where that is needed. A row more is a line more.
WAYS: dict[str, Callable[[float], dict[str, object]]] = {
    "target score, no weights": lambda beta: {"gauge": "plain", "noise": 1.0, "weights": "none"},
    "target score, weighted as published": lambda beta: {"gauge": "plain", "noise": 1.0, "ess_threshold": 1.1},
    "tempered noise, no weights": lambda beta: {"gauge": "plain", "noise": 1.0 / beta, "weights": "none"},
    "tempered noise, weighted as published": lambda beta: {
        "gauge": "plain",
        "noise": 1.0 / beta,
        "ess_threshold": 1.1,
        "force": True,
    },
    "reference gauge, no weights": lambda beta: {"noise": 2.0, "weights": "none"},
    "reference gauge, kappa 2, ESS 0.5": lambda beta: {"noise": 2.0},
    "fitted gauge, kappa 2, ESS 0.5": lambda beta: {"noise": 2.0, "gauge": "fitted"},
    "score control, kappa 2, ESS 0.5": lambda beta: {"noise": 2.0, "control": "score"},
    "least squares, kappa 2, ESS 0.5": lambda beta: {"noise": 2.0, "control": "least_squares"},
}
# (distance W2, energy W1, energy W2) of Skreta et al. 2025, table 3, Lennard-Jones 13
PUBLISHED = {
    ("target score, no weights", 1.5): "0.168 / 5.340 / 6.210",
    ("target score, weighted as published", 1.5): "0.083 / 3.366 / 3.386",
    ("tempered noise, no weights", 1.5): "0.095 / 2.154 / 3.920",
    ("tempered noise, weighted as published", 1.5): "0.066 / 0.765 / 0.939",
    ("target score, no weights", 0.8): "0.189 / 14.730 / 15.556",
    ("target score, weighted as published", 0.8): "0.048 / 6.252 / 6.356",
    ("tempered noise, no weights", 0.8): "0.108 / 6.487 / 8.501",
    ("tempered noise, weighted as published", 0.8): "0.047 / 7.016 / 7.111",
}


class Reference:
    """Quantiles of the long chains at one temperature."""

    def __init__(self, name: str, cluster: Cluster, temperature: float) -> None:
        table = load_file(str(files("feynkac.data") / "clusters" / f"{name}_reference.safetensors"))
        self.cluster = cluster
        self.energies, self.distances = table[f"energies_{temperature:g}"], table[f"distances_{temperature:g}"]

    def scores(self, z: Tensor, weights: Tensor) -> list[float]:
        """Distance W2, energy W1, energy W2, and the mass at energies above all quantiles of the reference."""
        x = self.cluster.positions(z.double())
        energies, distances = self.cluster.energy(x), self.cluster.distances(x)
        spread = weights[:, None].expand_as(distances).flatten()
        return [
            wasserstein(distances.flatten(), spread, self.distances, 2),
            wasserstein(energies, weights, self.energies, 1),
            wasserstein(energies, weights, self.energies, 2),
            float(weights[energies > self.energies[-1]].sum()),
        ]

    def floor(self, particles: int, seeds: int) -> list[list[float]]:
        """Energy W1 and W2 of as many independent draws (the distances of a configuration are no such draws)."""
        rows = []
        for seed in range(seeds):
            chosen = torch.randint(len(self.energies), (particles,), generator=torch.Generator().manual_seed(seed))
            even = torch.full((particles,), 1.0 / particles, dtype=torch.float64)
            rows.append([wasserstein(self.energies[chosen], even, self.energies, power) for power in (1, 2)])
        return rows


def shipped(name: str, cluster: Cluster) -> tuple[Expert, dict[str, object]]:
    """The model as an expert, and its card."""
    folder = Path(str(files("feynkac.data") / "clusters"))
    card = json.loads((folder / "card.json").read_text())[name]
    model = GraphDenoiser(cluster.particles, cluster.dimensions, **card["config"])
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    model.eval().requires_grad_(False)
    return cluster.expert(model, PATH, std=card["config"]["data_std"]), card


def drawn(
    expert: Expert, beta: float, options: argparse.Namespace, choices: dict[str, object]
) -> tuple[WeightedSamples, float]:
    """Samples of q^beta, a population a seed, and processor seconds a seed."""
    begun = time.thread_time()
    samples = sample_corrected(
        Annealed(expert, beta),
        particles=options.particles,
        populations=options.seeds,
        steps=options.steps,
        seed=0,
        chunk_size=250,
        **choices,  # type: ignore[arg-type]
    )
    return samples, (time.thread_time() - begun) / options.seeds


def show(label: str, rows: list[list[float]], rest: str = "") -> None:
    """One line of the table: mean (standard deviation over seeds)."""
    cells = []
    for column in zip(*rows, strict=True):
        spread = statistics.stdev(column) if len(column) > 1 else 0.0
        cells.append(f"{statistics.mean(column):.3f} ({spread:.3f})")
    print(f"| {label} | {' | '.join(cells)} | {rest} |", flush=True)


def anneal(name: str, options: argparse.Namespace) -> None:
    """The table of one system."""
    cluster, temperatures = SYSTEMS[name]
    expert, card = shipped(name, cluster)
    print(f"\n{name}: {options.particles} particles, {options.steps} steps, {options.seeds} seeds")
    heads = ("", "distance W2", "energy W1", "energy W2", "mass above the reference", "ESS, resamplings")
    print("| " + " | ".join((*heads, "log Z off by", "s a seed", "published")) + " |")
    print("|---" * 9 + "|")
    for temperature in (TRAINED_AT, *temperatures):
        reference, beta = Reference(name, cluster, temperature), TRAINED_AT / temperature
        floor = reference.floor(options.particles, options.seeds)
        show(f"T = {temperature:g}: as many draws of the chains | ", floor, " | | | |")
        ways = WAYS if temperature != TRAINED_AT else {"the model": lambda beta: {"noise": 1.0, "weights": "none"}}
        for label, choices in ways.items():
            samples, seconds = drawn(expert, beta, options, choices(beta))
            weights = samples.population.weights
            rows = [reference.scores(z, w) for z, w in zip(samples.x, weights, strict=True)]
            weighted = choices(beta).get("weights") != "none"
            often = float(samples.population.n_resamplings.double().mean())
            ess = f"{float(samples.ess.mean()) / options.particles:.2f}, {often:.0f}" if weighted else ""
            gap = samples.log_evidence - card["log_evidence"].get(f"{temperature:g}", torch.nan)
            spread = float(gap.std()) if len(gap) > 1 else 0.0
            evidence = f"{float(gap.mean()):+.2f} ({spread:.2f})" if weighted else ""
            quoted = PUBLISHED.get((label, temperature), "") if name == "lennard_jones_13" else ""
            show(label, rows, f"{ess} | {evidence} | {seconds:.1f} | {quoted}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--quick", action="store_true", help="100 particles, 50 steps")
    options = parser.parse_args()
    if options.quick:
        options.particles, options.steps = 100, 50
    torch.set_num_threads(1)
    print(describe())
    for name in options.systems:
        anneal(name, options)


if __name__ == "__main__":
    main()
