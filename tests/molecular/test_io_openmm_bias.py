"""Bias files of OpenMM's Metadynamics: read from OpenMM itself, and written so that OpenMM takes them in."""

import math

import numpy as np
import pytest
import torch

from feynkac.molecular.io import FileFormatError, read_grid, read_openmm_bias, write_grid, write_openmm_bias

PI = math.pi


def make_metadynamics(directory, *, periodic):
    """Two particles on springs, with two variables of unequal grids."""
    mm = pytest.importorskip("openmm")
    app = pytest.importorskip("openmm.app")
    system = mm.System()
    for _ in range(2):
        system.addParticle(10.0)
    spring = mm.CustomExternalForce("20*((x-a)^2+y^2+z^2)")
    spring.addPerParticleParameter("a")
    spring.addParticle(0, [0.2])
    spring.addParticle(1, [0.5])
    system.addForce(spring)
    variables = []
    for particle, width, ends in ((0, 9, (-PI, PI)), (1, 7, (-2.0, 2.0))):
        force = mm.CustomExternalForce("x")
        force.addParticle(particle, [])
        variables.append(app.BiasVariable(force, *ends, 0.4, periodic, width))
    meta = app.Metadynamics(system, variables, 300, 5.0, 1.5, 2, saveFrequency=10, biasDir=str(directory))
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for _ in range(2):
        topology.addAtom("X", None, residue)
    integrator = mm.LangevinMiddleIntegrator(300, 1.0, 0.002)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions([[0.2, 0, 0], [0.5, 0, 0]])
    return meta, simulation


@pytest.mark.parametrize("periodic", [True, False])
def test_openmms_own_files(tmp_path, periodic):
    first, simulation = make_metadynamics(tmp_path, periodic=periodic)
    first.step(simulation, 40)
    second, simulation = make_metadynamics(tmp_path, periodic=periodic)
    second.step(simulation, 20)
    bias = read_openmm_bias(tmp_path)
    assert len(bias.walkers) == 2
    assert sorted(bias.indices) == sorted([first._saveIndex, second._saveIndex])
    assert bias.total.shape == (9, 7)  # in the order of the variables; OpenMM's own arrays are (7, 9)
    free_energy = second.getFreeEnergy()._value
    assert np.ptp(free_energy) > 1.0
    np.testing.assert_allclose(bias.free_energy(5.0).numpy(), free_energy.T, rtol=0, atol=1e-12)
    alone = read_openmm_bias_of_one(tmp_path, bias.walkers[0])
    assert not np.allclose(alone.free_energy(5.0).numpy(), free_energy.T)
    grid = bias.grid(["x", "y"], [-PI, -2.0], [PI, 2.0], periodic=periodic)
    assert grid.bias.shape == ((8, 6) if periodic else (9, 7))
    node = 2 * PI / 8
    assert float(grid.axes[0].points()[1]) == pytest.approx(-PI + node)
    # The largest bias lies where the first particle was.
    peak = (grid.bias == grid.bias.max()).nonzero()[0]
    assert abs(float(grid.axes[0].points()[peak[0]]) - 0.2) < node
    assert abs(float(grid.axes[1].points()[peak[1]]) - 0.5) < node
    write_grid(tmp_path / "GRID", grid.axes, grid.columns)
    torch.testing.assert_close(read_grid(tmp_path / "GRID").bias, grid.bias, rtol=0, atol=1e-9)


def read_openmm_bias_of_one(directory, walker):
    other = directory / "one"
    other.mkdir()
    for path in directory.glob(f"bias_{walker}_*.npy"):
        (other / path.name).write_bytes(path.read_bytes())
    return read_openmm_bias(other)


@pytest.mark.parametrize("periodic", [True, False])
def test_openmm_takes_in_what_is_written(tmp_path, periodic):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand((8, 6) if periodic else (9, 7), generator=generator, dtype=torch.float64)
    path = write_openmm_bias(tmp_path, values, walker=12, index=3, periodic=periodic)
    assert path.name == "bias_12_3.npy"
    meta, _ = make_metadynamics(tmp_path, periodic=periodic)
    both_ends = np.pad(values.numpy(), (0, 1), mode="wrap") if periodic else values.numpy()
    np.testing.assert_array_equal(meta._totalBias, both_ends.T)
    again = read_openmm_bias(tmp_path).grid(["x", "y"], [-PI, -2.0], [PI, 2.0], periodic=periodic)
    assert torch.equal(again.bias, values)
    with pytest.raises(FileExistsError):
        write_openmm_bias(tmp_path, values, walker=12, index=3, periodic=periodic)


def test_the_newest_file_of_each_walker_counts(tmp_path):
    one = torch.ones(3, dtype=torch.float64)
    for walker, index, height in ((5, 9, 1.0), (5, 10, 2.0), (7, 1, 40.0)):
        write_openmm_bias(tmp_path, height * one, walker=walker, index=index, periodic=False)
    (tmp_path / "temp_5_11.npy").write_bytes(b"half")
    bias = read_openmm_bias(tmp_path)
    assert bias.total.tolist() == [42.0] * 3
    assert (bias.walkers, bias.indices) == ((5, 7), (10, 1))
    assert bias.free_energy(2.0).tolist() == [-84.0] * 3
    assert bias.free_energy(math.inf).tolist() == [-42.0] * 3
    with pytest.raises(ValueError, match="above 1"):
        bias.free_energy(1.0)
    with pytest.raises(ValueError, match="has 1 variables"):
        bias.grid(["a", "b"], [0, 0], [1, 1], periodic=False)


def test_broken_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file bias_"):
        read_openmm_bias(tmp_path)
    path = write_openmm_bias(tmp_path, torch.ones(30, 4), walker=1, periodic=False)
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) - 8):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"bias_1_0\.npy: truncated"):
            read_openmm_bias(tmp_path)
    for array, message in (
        (np.array([{"an": "object"}], dtype=object), "no plain array"),
        (np.array(["text"]), "floating point"),
        (np.array([math.nan]), "not finite"),
        (np.zeros((2, 2, 2, 2)), "one to three variables"),
    ):
        np.save(path, array)
        with pytest.raises(FileFormatError, match=message):
            read_openmm_bias(tmp_path)
    path.write_bytes(whole)
    write_openmm_bias(tmp_path, torch.ones(4, 30), walker=2, periodic=False)
    with pytest.raises(FileFormatError, match=r"bias_2_0\.npy: shape \(30, 4\), but bias_1_0\.npy has \(4, 30\)"):
        read_openmm_bias(tmp_path)


def test_only_biases_are_written(tmp_path):
    for values, walker, index in ((torch.ones(2, 2, 2, 2), 1, 0), (torch.tensor([math.inf]), 1, 0)):
        with pytest.raises(ValueError, match="finite"):
            write_openmm_bias(tmp_path, values, walker=walker, index=index, periodic=False)
    with pytest.raises(ValueError, match="negative"):
        write_openmm_bias(tmp_path, torch.ones(3), walker=-1, periodic=False)
    assert list(tmp_path.iterdir()) == []
