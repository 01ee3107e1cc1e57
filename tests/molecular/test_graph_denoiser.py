"""The denoiser of clusters: its symmetries, its limits, its training target; and the shipped models, annealed."""

import json
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load

from feynkac.fkc import Annealed, Diffusion, sample_corrected
from feynkac.fkc.testing.clusters import Cluster
from feynkac.molecular.diffusion.graph import GraphDenoiser, denoising_loss

CLUSTERS = {"lennard_jones_13": Cluster.lennard_jones(), "double_well_4": Cluster.double_well()}
DATA = files("feynkac.data") / "clusters"


def small(particles=5, dimensions=3, seed=0, **options) -> GraphDenoiser:
    model = GraphDenoiser(
        particles, dimensions, 1.3, hidden=8, layers=2, generator=torch.Generator().manual_seed(seed), **options
    )
    for layer in model.rounds:
        torch.nn.init.normal_(layer.move.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model.double()


def configurations(count=3, particles=5, dimensions=3, seed=2) -> torch.Tensor:
    x = torch.randn((count, particles, dimensions), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x - x.mean(dim=1, keepdim=True)


def test_symmetries():
    model, y = small(), configurations()
    sigma = torch.tensor([0.02, 0.5, 4.0], dtype=torch.float64)
    clean = model(y, sigma)
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn((3, 3), generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(matrix)[0]
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(model((y @ turn)[:, order] + 2.0, sigma), (clean @ turn)[:, order])
    torch.testing.assert_close(clean.sum(dim=1), torch.zeros(3, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not torch.allclose(model(y @ matrix, sigma), clean @ matrix)  # no rotation
    assert not torch.allclose(clean, y * (1.69 / (1.69 + sigma.square()))[:, None, None])  # the network takes part


def test_batch_equals_singles():
    model, y = small(), configurations()
    sigma = torch.tensor([0.02, 0.5, 4.0], dtype=torch.float64)
    singles = torch.cat([model(y[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(y, sigma), singles)


def test_score_has_a_limit_at_small_noise():
    """(D - y)/sigma^2 converges; without the fall of F it would grow as 1/sigma."""
    model, y = small(), configurations(1)

    def growth(denoiser: GraphDenoiser) -> float:
        with torch.no_grad():
            sizes = [((denoiser(y, torch.tensor([s]).double()) - y) / s**2).norm() for s in (1e-3, 1e-4)]
        return float(sizes[1] / sizes[0])

    assert 0.6 < growth(model) < 1.6
    assert growth(small(core=1e-9)) > 3.0


class Scaled(torch.nn.Module):
    """D = factor y."""

    data_std, core = 1.3, 0.1

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.factor * y


@pytest.mark.parametrize(("scale", "right"), [(None, True), (1.0, True), (2.0, False)])
def test_the_loss_is_least_at_the_exact_denoiser(scale, right):
    """Gaussian data: with either target the best D = a y is the exact one; a doubled score teaches another."""
    generator = torch.Generator().manual_seed(0)
    z = 1.3 * torch.randn((200_000, 1, 1), generator=generator, dtype=torch.float64)
    x = torch.cat([z, -z], dim=1) / 2**0.5
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    sigma = torch.full((len(x),), 0.2, dtype=torch.float64)
    score = None if scale is None else -scale * x / 1.69
    low, middle, high = (float(denoising_loss(Scaled(a), x, sigma, noise, score).mean()) for a in (0.9, 1.0, 1.1))
    best = 1.0 - 0.05 * (high - low) / (high - 2 * middle + low)
    assert (abs(best - 1.69 / (1.69 + 0.04)) < 1e-3) is right


def test_refusals():
    with pytest.raises(ValueError, match="particles, data_std: got 1"):
        GraphDenoiser(1, 3, 1.0)


def shipped(name: str, cluster: Cluster) -> tuple[GraphDenoiser, dict[str, torch.Tensor], dict[str, object]]:
    card = json.loads((DATA / "card.json").read_text())[name]
    model = GraphDenoiser(cluster.particles, cluster.dimensions, **card["config"])
    model.load_state_dict(load((DATA / f"{name}.safetensors").read_bytes()))
    model.eval().requires_grad_(False)
    return model, load((DATA / f"{name}_reference.safetensors").read_bytes()), card


@pytest.mark.parametrize("name", CLUSTERS)
def test_shipped_chains_converged(name):
    model, table, card = shipped(name, CLUSTERS[name])
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert all(abs(row["halves_differ_by_std_errors"]) < 4.0 for row in card["chains"])
    for row in card["chains"]:
        mean = float(table[f"energies_{row['temperature']:g}"].double().mean())
        assert mean == pytest.approx(row["mean_energy"], abs=0.1 + 4 * row["std_error"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
def test_shipped_score_at_small_noise_is_the_force(name):
    """Where the model's own samples are: the score is -grad E/2, and not -grad E/1.5."""
    cluster = CLUSTERS[name]
    model, _, card = shipped(name, cluster)
    expert = cluster.expert(model, Diffusion.ve(0.005, 10.0), std=card["config"]["data_std"])
    drawn = sample_corrected(
        Annealed(expert, 1.0), particles=200, steps=100, noise=1.0, weights="none", seed=0, chunk_size=200
    )
    x = cluster.positions(drawn.x[0])
    with torch.no_grad():
        score = (model(x, torch.full((200,), 0.01, dtype=torch.float64)) - x) / 0.01**2
    force = -cluster.energy_and_gradient(x)[1]

    def error(temperature: float) -> float:
        truth = force / temperature
        return float(((score - truth).norm(dim=(1, 2)) / truth.norm(dim=(1, 2))).median())

    assert error(2.0) < 0.12
    assert error(1.5) > 0.2


@pytest.mark.slow
def test_weights_bring_the_annealed_energy_to_that_of_the_chains():
    """Lennard-Jones 13 from T = 2 to 1.5: the median energy is met with the weights and missed without them."""
    cluster = CLUSTERS["lennard_jones_13"]
    model, table, card = shipped("lennard_jones_13", cluster)
    expert = cluster.expert(model, Diffusion.ve(0.005, 10.0), std=card["config"]["data_std"])
    truth, target = float(table["energies_1.5"].double().median()), Annealed(expert, 2.0 / 1.5)
    gaps, evidence = {}, 0.0
    for weights in ("none", "rate"):
        samples = sample_corrected(target, particles=400, steps=100, noise=2.0, weights=weights, seed=0, chunk_size=200)
        energies = cluster.energy(cluster.positions(samples.resampled()[0]))
        gaps[weights] = abs(float(energies.median()) - truth)
        evidence = float(samples.log_evidence)
    assert gaps["none"] > 6.0
    assert gaps["rate"] < 4.0
    assert evidence == pytest.approx(card["log_evidence"]["1.5"], abs=1.5)
