"""What must hold on a CUDA device as it does on the CPU; skipped, visibly, where there is none."""

import pytest
import torch

from feynkac.fkc import Population, resample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "systematic", "residual", "ssp"])
def test_resampling_keeps_its_laws_on_the_device(scheme):
    generator = torch.Generator(device="cuda").manual_seed(1)
    log_weights = torch.randn((50, 4096), generator=generator, device="cuda", dtype=torch.float64)
    ancestors = resample(log_weights, scheme, generator)
    assert ancestors.device.type == "cuda"
    copies = torch.zeros_like(log_weights).scatter_add_(1, ancestors, torch.ones_like(log_weights))
    assert torch.equal(copies.sum(dim=1), torch.full((50,), 4096.0, dtype=torch.float64, device="cuda"))
    if scheme in ("systematic", "ssp"):
        expected = 4096 * log_weights.softmax(dim=1)
        assert (copies >= expected.floor() - 1e-6).all()
        assert (copies <= expected.ceil() + 1e-6).all()


def test_population_agrees_with_the_cpu():
    increment = torch.randn((3, 1000), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    here = Population.uniform(3, 1000).reweighted(increment)
    there = Population.uniform(3, 1000, device="cuda").reweighted(increment.cuda())
    assert torch.allclose(there.log_evidence.cpu(), here.log_evidence, rtol=1e-12)
    assert torch.allclose(there.ess.cpu(), here.ess, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_force_field_agrees_with_the_cpu(dtype):
    pytest.importorskip("openmm")
    from importlib.resources import files

    from feynkac.molecular.energies import BatchedForceField
    from feynkac.molecular.systems import load_system

    pdb = files("feynkac.data") / "molecules" / "chignolin.pdb"
    built = load_system(str(pdb), force_field=["amber14-all.xml", "implicit/gbn2.xml"])
    noise = torch.randn((64, built.n_atoms, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    positions = built.positions[None] + 0.005 * noise
    truth = BatchedForceField.from_openmm(built.system, dtype=torch.float64).energy_and_forces(positions)
    on_device = BatchedForceField.from_openmm(built.system, dtype=dtype, device="cuda")
    assert on_device.backend == "torch"
    energy, forces = on_device.energy_and_forces(positions.to(dtype))
    tolerance = (0.1, 1.0) if dtype == torch.float32 else (1e-7, 1e-6)
    assert (energy.cpu() - truth.energy).abs().max() < tolerance[0]
    assert (forces.cpu().double() - truth.forces).abs().max() < tolerance[1]
