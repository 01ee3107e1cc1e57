"""Energies of clusters against known minima, autograd and their symmetries."""

import math

import pytest
import torch

from feynkac.fkc import Diffusion
from feynkac.fkc.mean_free import mean_free_basis
from feynkac.fkc.testing.clusters import Cluster, wasserstein

CLUSTERS = {"lennard_jones": Cluster.lennard_jones(13), "double_well": Cluster.double_well(4)}


def icosahedron() -> torch.Tensor:
    """(13, 3): a particle in the middle and twelve at distance 1."""
    golden = (1.0 + math.sqrt(5.0)) / 2.0
    corners = [(0.0, s, t * golden) for s in (-1.0, 1.0) for t in (-1.0, 1.0)]
    turned = [tuple(c[(i + k) % 3] for i in range(3)) for c in corners for k in range(3)]
    shell = torch.tensor(turned, dtype=torch.float64)
    return torch.cat([torch.zeros(1, 3, dtype=torch.float64), shell / shell[0].norm()])


def scattered(cluster: Cluster, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn((count, *cluster.shape), generator=generator, dtype=torch.float64)
    return cluster.positions(1.5 * z)


@pytest.mark.parametrize(("depth", "floor"), [(1.0, -44.326801), (2.0, -88.653603)])
def test_icosahedron_is_the_known_minimum(depth, floor):
    """-44.326801 wells deep (Hoare and Pal 1971; Wales and Doye 1997, table 1), twice that over ordered pairs."""
    free = Cluster.lennard_jones(13, depth=depth, trap=0.0)
    scales = torch.linspace(0.9, 1.05, 3001, dtype=torch.float64)
    energy, gradient = free.energy_and_gradient(scales[:, None, None] * icosahedron())
    best = int(energy.argmin())
    assert float(energy[best]) == pytest.approx(floor, abs=1e-4)
    assert float(gradient[best].abs().max()) < 0.05 * float(gradient[0].abs().max())
    cubes = torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64)] * 3)[:13]  # another shape is higher
    assert float(torch.stack([free.energy(s * cubes) for s in scales]).min()) > 0.8 * floor


def test_double_well_pair():
    pair = Cluster.double_well(2)
    apart = torch.tensor([4.0, 4.0 - math.sqrt(4 / 1.8), 4.0 + math.sqrt(4 / 1.8)], dtype=torch.float64)
    x = torch.stack([torch.zeros(3, 2).double(), torch.stack([apart, torch.zeros(3).double()], dim=1)], dim=1)
    energy, gradient = pair.energy_and_gradient(x)
    torch.testing.assert_close(energy, torch.tensor([0.0, -16 / 3.6, -16 / 3.6], dtype=torch.float64))
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("name", CLUSTERS)
def test_gradient_is_that_of_autograd(name):
    cluster = CLUSTERS[name]
    x = scattered(cluster).requires_grad_()
    energy, gradient = cluster.energy_and_gradient(x)
    (truth,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(gradient, truth)
    assert float(gradient.detach().sum(dim=1).abs().max()) < 1e-9 * float(truth.abs().max())


@pytest.mark.parametrize("name", CLUSTERS)
def test_symmetries(name):
    cluster = CLUSTERS[name]
    x = scattered(cluster)
    energy = cluster.energy(x)
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn((x.shape[2],) * 2, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(matrix)[0]
    order = torch.randperm(x.shape[1], generator=generator)
    torch.testing.assert_close(cluster.energy((x @ turn + 3.0)[:, order]), energy)
    assert not torch.allclose(cluster.energy(x @ matrix), energy)  # no rotation


def test_coordinates_are_orthonormal_and_mean_free():
    basis = mean_free_basis(13)
    torch.testing.assert_close(basis.T @ basis, torch.eye(12, dtype=torch.float64))
    assert float(basis.sum(dim=0).abs().max()) < 1e-12
    cluster = CLUSTERS["lennard_jones"]
    x = scattered(cluster)
    torch.testing.assert_close(cluster.positions(cluster.coordinates(x + 1.0)), x)
    torch.testing.assert_close(cluster.coordinates(x).square().sum(), x.square().sum())
    with pytest.raises(ValueError, match="particles: got 1"):
        mean_free_basis(1)


def test_distances_are_those_of_pairs():
    x = icosahedron()
    found = CLUSTERS["lennard_jones"].distances(x).sort().values
    torch.testing.assert_close(found, torch.pdist(x).sort().values)
    torch.testing.assert_close(found[:12], torch.ones(12, dtype=torch.float64))


def test_expert_of_a_denoiser_is_that_of_its_coordinates():
    """A Gaussian's denoiser in positions gives its score in coordinates; the centre of mass does not enter."""
    cluster, std = CLUSTERS["double_well"], 2.0

    def denoise(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return y * (std**2 / (std**2 + sigma.square()))[:, None, None] + 7.0

    expert = cluster.expert(denoise, Diffusion.ve(0.01, 10.0), std=std)
    z = torch.randn((5, *cluster.shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(expert.score(z, 2.25), -z / (std**2 + 2.25), rtol=1e-5, atol=1e-6)


def test_wasserstein_of_weighted_values():
    """A shift by 2; a mass of a third moved by 3; weights as repetitions; and even weights, which are another law."""
    table = torch.arange(6, dtype=torch.float64)
    even = torch.full((6,), 1 / 6, dtype=torch.float64)
    assert wasserstein(table.flip(0) + 2.0, even, table, 1) == pytest.approx(2.0)
    moved = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)
    third, origin = torch.full((3,), 1 / 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert wasserstein(moved, third, origin, 1) == pytest.approx(1.0)
    assert wasserstein(moved, third, origin, 2) == pytest.approx(math.sqrt(3.0))
    values, weights = torch.tensor([4.0, 1.0]).double(), torch.tensor([0.75, 0.25]).double()
    repeated = torch.tensor([4.0, 4.0, 4.0, 1.0], dtype=torch.float64)
    truth = wasserstein(repeated, torch.full((4,), 0.25, dtype=torch.float64), table, 2)
    assert wasserstein(values, weights, table, 2) == pytest.approx(truth)
    assert wasserstein(values, torch.full((2,), 0.5, dtype=torch.float64), table, 2) != pytest.approx(truth, rel=0.05)
