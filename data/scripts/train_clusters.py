"""Reference laws of two clusters by long Markov chains, and small diffusion models trained on their warm ends.

    python data/scripts/train_clusters.py {lennard_jones_13,double_well_4} [--output data/clusters] [--steps 20000]

Chains: Metropolis-adjusted Langevin moves at six temperatures at once, with replica exchange between neighbours; the
halves of the run must agree. The model sees T = 2 only; quantiles of energies and pair distances at the other
temperatures are kept as references for `tests/benchmarks/bench_clusters.py`, with the absolute log Z from tempering out
of a Gaussian. Writes OUTPUT/NAME.safetensors (weights), OUTPUT/NAME_reference.safetensors (quantiles) and its part of
OUTPUT/card.json, which says how long it took.
"""

import argparse
import copy
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from feynkac.fkc import (
    AdaptiveSchedule,
    Annealed,
    Diffusion,
    GeometricPath,
    Point,
    StepSizeTuning,
    Tempering,
    WithScore,
    generator_for,
    resample,
    sample_corrected,
    smc,
    uniform,
)
from feynkac.fkc.kernels import MALA
from feynkac.fkc.testing.clusters import Cluster, wasserstein
from feynkac.molecular.diffusion.graph import GraphDenoiser, denoising_loss

SEED = 20261122
CLUSTERS = {"lennard_jones_13": Cluster.lennard_jones(), "double_well_4": Cluster.double_well()}
PRIOR = {"lennard_jones_13": (1.2, 0.1), "double_well_4": (2.0, 0.4)}  # width of the start, core of the denoiser
TEMPERATURES = (0.8, 1.0, 1.2, 1.5, 1.75, 2.0)
QUANTILES = 2000
SIGMA = (0.003, 12.0)  # noise levels that the model learns
FOCUS = {"lennard_jones_13": (0.03, 3.0), "double_well_4": (0.15, 6.0)}  # where structure forms
BATCH = 128


def swap(points: Tensor, energies: Tensor, inverse: Tensor, parity: int, generator: torch.Generator) -> Tensor:
    """Where each temperature takes its configuration from (R, K): neighbours exchanged by the Metropolis rule."""
    count = len(inverse)
    ratio = (inverse[1:] - inverse[:-1])[:, None] * (energies[1:] - energies[:-1])
    tried = (torch.arange(count - 1) % 2 == parity)[:, None]
    accepted = (uniform([generator], ratio.shape)[0].log() < ratio) & tried
    source = torch.arange(count)[:, None].expand_as(energies).clone()
    source[:-1] += accepted.long()
    source[1:] -= accepted.long()
    return source


def density(cluster: Cluster) -> WithScore:
    """-E and its gradient in mean-free coordinates."""

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = cluster.energy_and_gradient(cluster.positions(z))
        return -energy, -cluster.coordinates(gradient)

    return WithScore(function)


def chains(cluster: Cluster, start: Tensor, sweeps: int, burn: int, every: int) -> tuple[Tensor, Tensor]:
    """Coordinates (S, R, K, n - 1, d) and energies (S, R, K), a record every ``every`` moves after ``burn`` moves, from
    ``start`` (K, n - 1, d) at all temperatures."""
    generators = [generator_for(SEED, i) for i in range(len(TEMPERATURES))]
    exchange = generator_for(SEED, len(TEMPERATURES))
    inverse = 1.0 / torch.tensor(TEMPERATURES, dtype=torch.float64)
    path = GeometricPath((density(cluster),), inverse[:, None])
    point, kernel = path.evaluate(start.expand(len(TEMPERATURES), *start.shape), score=True), MALA()
    step, tuning = torch.full_like(inverse, 1e-4), StepSizeTuning(0.6, 0.05)
    positions, energies = [], []
    for done in range(1, burn + sweeps + 1):
        moved = kernel(generators, point, path, step)
        point = moved.point
        if done <= burn:
            step = tuning.tuned(step, moved.accepted.double().mean(dim=1))
        if done % 5 == 0:
            source = swap(point.x, -point.log_prob[..., 0], inverse, done // 5 % 2, exchange)
            columns = torch.arange(len(start)).expand_as(source)
            assert point.score is not None  # the kernel asked for it
            point = Point(point.x[source, columns], point.log_prob[source, columns], point.score[source, columns])
        if done > burn and done % every == 0:
            positions.append(point.x.float())
            energies.append(-point.log_prob[..., 0])
    print(f"chains: step sizes {step.tolist()}", flush=True)
    return torch.stack(positions), torch.stack(energies)


def convergence(energies: Tensor) -> list[dict[str, float]]:
    """Mean energy at every temperature, its standard error from the K ladders (independent of each other), and the
    difference of the halves of the run in its own standard errors."""
    half = len(energies) // 2
    ladder = energies.mean(dim=0)
    gap = energies[:half].mean(dim=0) - energies[half:].mean(dim=0)
    root = ladder.shape[1] ** 0.5
    return [
        {
            "temperature": t,
            "mean_energy": float(mean.mean()),
            "std_error": float(mean.std() / root),
            "halves_differ_by_std_errors": float(g.mean() / (g.std() / root)),
        }
        for t, mean, g in zip(TEMPERATURES, ladder, gap, strict=True)
    ]


class Start:
    """The Gaussian that tempering starts from."""

    def __init__(self, shape: tuple[int, ...], std: float) -> None:
        self.shape, self.std = shape, std

    def sample_and_log_prob(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``(n, *shape)`` and ``(n,)``."""
        x = self.std * torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        return x, self.log_prob_and_score(x)[0]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, *shape)``."""
        variance = self.std**2
        log = -0.5 * (x.flatten(1).square().sum(dim=1) / variance + x[0].numel() * math.log(2 * math.pi * variance))
        return log, -x / variance


def tempered(
    cluster: Cluster, temperature: float, std: float, particles: int, populations: int = 4
) -> tuple[float, float, Tensor]:
    """log Z of exp(-E/T) over mean-free coordinates, its standard error over populations, and draws (K, n - 1, d)."""
    warm, start = density(cluster), Start(cluster.shape, std)

    def scaled(z: Tensor) -> tuple[Tensor, Tensor]:
        value, score = warm.log_prob_and_score(z)
        return value / temperature, score / temperature

    model = Tempering(
        start,
        WithScore(start.log_prob_and_score),
        WithScore(scaled),
        MALA(),
        AdaptiveSchedule(cess=0.98, max_steps=2000),
        step_size=1e-3,
        moves=4,
        tuning=StepSizeTuning(0.6, 0.2),
    )
    result = smc(model, particles=particles, seed=SEED, populations=populations)
    found = result.log_evidence
    chosen = resample(result.log_weights, "systematic", [generator_for(SEED, 100 + p) for p in range(populations)])
    draws = torch.cat([x[row] for x, row in zip(result.x, chosen, strict=True)])
    return float(found.mean()), float(found.std() / populations**0.5), draws


def evidences(energies: Tensor, log_z: float) -> dict[str, float]:
    """log of the integral of q^(2/T), q the normalised law at T = 2: -<E> integrated over 1/T, trapezium rule with
    the end correction (the slope of <E> is minus its variance)."""
    inverse = 1.0 / torch.tensor(TEMPERATURES, dtype=torch.float64)
    mean, variance = energies.mean(dim=(0, 2)), energies.permute(1, 0, 2).flatten(1).var(dim=1)
    found, total = {}, log_z
    for i in range(len(TEMPERATURES) - 1, 0, -1):
        width = inverse[i - 1] - inverse[i]
        total -= float(0.5 * width * (mean[i] + mean[i - 1]) + width**2 / 12 * (variance[i - 1] - variance[i]))
        found[f"{TEMPERATURES[i - 1]:g}"] = total - TEMPERATURES[-1] / TEMPERATURES[i - 1] * log_z
    return found


def quantiles(values: Tensor) -> Tensor:
    """The middles of QUANTILES equal shares, float32."""
    ordered = values.flatten().double().sort().values
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES * len(ordered)
    return ordered[middles.long()].float()


def rate(step: int, steps: int, peak: float = 2e-3, warmup: int = 200) -> float:
    """Learning rate: linear warm-up, then half a cosine to zero."""
    return peak * min(1.0, step / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def noise_levels(count: int, focus: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(B,) log-uniform: two thirds where structure forms, a third over the whole range."""
    place = torch.rand(count, generator=generator)
    whole = torch.rand(count, generator=generator) < 1 / 3
    low = torch.where(whole, math.log(SIGMA[0]), math.log(focus[0]))
    high = torch.where(whole, math.log(SIGMA[1]), math.log(focus[1]))
    return (low + (high - low) * place).exp()


def train(
    cluster: Cluster, data: Tensor, steps: int, config: dict[str, Any], focus: tuple[float, float]
) -> GraphDenoiser:
    """The denoiser of ``data`` (N, n - 1, d), the Boltzmann law at T = 2, averaged over the last steps."""
    generator = torch.Generator().manual_seed(SEED)
    model = GraphDenoiser(cluster.particles, cluster.dimensions, **config, generator=generator)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99))
    x = cluster.positions(data)
    scores = torch.cat([-cluster.energy_and_gradient(part)[1] / TEMPERATURES[-1] for part in x.split(8192)])
    running, begun = 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        sigma = noise_levels(BATCH, focus, generator)
        noise = torch.randn((BATCH, *x.shape[1:]), generator=generator)
        lifted = (1.0 + (model.core / sigma).square()).sqrt()  # keeps small noise from being forgotten
        loss = (lifted * denoising_loss(model, x[rows], sigma, noise, scores[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        optimizer.step()
        decay = min(0.999, step / (step + 10))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 1.0 - decay)
        running += (loss.item() - running) * max(0.002, 1 / step)
        if step % 500 == 0:
            print(f"step {step}: loss {running:.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return average


def quality(cluster: Cluster, model: GraphDenoiser, table: dict[str, Tensor], draws: int = 2000) -> dict[str, float]:
    """The model's own law against the chains at T = 2, 200 steps; the floor is that of as many draws of the table."""
    expert = cluster.expert(model.eval().requires_grad_(False), Diffusion.ve(0.005, 10.0), std=model.data_std)
    samples = sample_corrected(
        Annealed(expert, 1.0), particles=draws, steps=200, noise=1.0, weights="none", seed=SEED, chunk_size=250
    )
    x = cluster.positions(samples.x[0])
    energies, distances = cluster.energy(x), cluster.distances(x).flatten()
    name = f"{TEMPERATURES[-1]:g}"
    chosen = torch.randint(QUANTILES, (draws,), generator=torch.Generator().manual_seed(SEED))
    even, wide = (torch.full((n,), 1.0 / n, dtype=torch.float64) for n in (draws, len(distances)))
    return {
        "draws": draws,
        "distance_w2": wasserstein(distances, wide, table[f"distances_{name}"], 2),
        "energy_w1": wasserstein(energies, even, table[f"energies_{name}"], 1),
        "energy_w1_floor": wasserstein(table[f"energies_{name}"][chosen], even, table[f"energies_{name}"], 1),
        "energy_median": float(energies.median()),
        "energy_median_of_chains": float(table[f"energies_{name}"].median()),
        "share_above_all_of_the_table": float((energies > table[f"energies_{name}"][-1]).double().mean()),
    }


def write(folder: Path, name: str, card: dict[str, object], model: GraphDenoiser, table: dict[str, Tensor]) -> None:
    """Weights, quantiles and this system's part of the card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    save_file(table, folder / f"{name}_reference.safetensors")
    place = folder / "card.json"
    cards = json.loads(place.read_text()) if place.exists() else {}
    place.write_text(json.dumps(dict(sorted((cards | {name: card}).items())), indent=2) + "\n")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def main() -> None:
    """Sample, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CLUSTERS))
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "clusters")
    parser.add_argument("--steps", type=int, default=20_000, help="of training")
    parser.add_argument("--moves", type=int, default=20_000, help="of the chains")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cluster, begun = CLUSTERS[arguments.name], time.process_time()
    width, core = PRIOR[arguments.name]
    log_z, log_z_error, start = tempered(cluster, TEMPERATURES[-1], width, 1000)
    rows = torch.randperm(len(start), generator=torch.Generator().manual_seed(SEED))[:400]
    positions, energies = chains(cluster, start[rows], arguments.moves, arguments.moves // 4, 50)
    table = {}
    for i, temperature in enumerate(TEMPERATURES):
        table[f"energies_{temperature:g}"] = quantiles(energies[:, i])
        table[f"distances_{temperature:g}"] = quantiles(cluster.distances(cluster.positions(positions[:, i])))
    sampled = time.process_time() - begun
    data = positions[:, -1].flatten(0, 1)
    config = {
        "data_std": round(float(data.double().square().mean().sqrt()), 3),
        "hidden": 32,
        "layers": 4,
        "core": core,
    }
    model = train(cluster, data, arguments.steps, config, FOCUS[arguments.name])
    card = {
        "law": f"Boltzmann at T = {TEMPERATURES[-1]:g}, mean-free, see feynkac.fkc.testing.clusters",
        "script": "data/scripts/train_clusters.py",
        "seed": SEED,
        "versions": {"torch": version("torch")},
        "config": config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {"samples": len(data), "steps": arguments.steps, "batch": BATCH, "noise_levels": SIGMA},
        "cpu_seconds": {"chains": round(sampled), "training": round(time.process_time() - begun - sampled)},
        "chains": convergence(energies),
        "log_partition": {"temperature": TEMPERATURES[-1], "value": log_z, "std_error": log_z_error},
        "log_evidence": evidences(energies, log_z),
        "quality": quality(cluster, model, table),
    }
    write(arguments.output, arguments.name, card, model, table)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
