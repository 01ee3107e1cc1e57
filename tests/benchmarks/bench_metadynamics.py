"""Metadynamics of alanine dipeptide: many walkers in a batch beside `openmm.app.Metadynamics`.

    python tests/benchmarks/bench_metadynamics.py speed      # walker-steps a second
    python tests/benchmarks/bench_metadynamics.py hills      # what the bias costs against the number of hills
    python tests/benchmarks/bench_metadynamics.py accuracy [--calls 5000000] [--seeds 3] [--openmm-seeds 1]

``accuracy`` gives both the same number of force calls, and reads OpenMM's estimate off at the same wall time too. Both
move atoms of 12 amu by 2 fs without constraints at 300 K, by default amber99sbildn + amber99_obc, with well-tempered
hills on phi and psi, bias factor 10. One thread, in turn. No GPU is used.
"""

import argparse
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import openmm
import torch
from machine import describe
from openmm import app, unit
from tqdm import tqdm

from feynkac.fkc.bias import BiasVariable, Hills, RepulsionBias
from feynkac.molecular.cvs import Torsion
from feynkac.molecular.dynamics import Langevin, Metadynamics, MetadynamicsSettings, metadynamics
from feynkac.molecular.energies import BatchedForceField
from feynkac.molecular.free_energy import free_energy_difference
from feynkac.molecular.systems import load_system

MOLECULE = Path(__file__).parents[2] / "data" / "molecules" / "alanine_dipeptide.pdb"
FORCE_FIELDS = {
    "amber99sbildn": ("amber99sbildn.xml", "amber99_obc.xml"),
    "amber96": ("amber96.xml", "implicit/obc1.xml"),
}
TEMPERATURE, MASS, TIME_STEP = 300.0, 12.0, 0.002
PHI, PSI = Torsion(4, 6, 8, 14, name="phi"), Torsion(6, 8, 14, 16, name="psi")
VARIABLES = [BiasVariable(name, 0.3, 2 * math.pi, "rad") for name in ("phi", "psi")]
REFERENCE = {"amber99sbildn": 3.84, "amber96": 5.94}  # kT, by replica exchange, data/references/


def molecule(force_field: str = "amber99sbildn"):
    """The System, and the batched energy of it."""
    built = load_system(MOLECULE, force_field=FORCE_FIELDS[force_field])
    energy = BatchedForceField.from_openmm(built.system, topology=built.topology, temperature=TEMPERATURE)
    return built, energy


def hills_bias(kT: float, height: float = 40.0, **options) -> RepulsionBias:
    """Well-tempered, empty."""
    return RepulsionBias.well_tempered(VARIABLES, kT=kT, bias_factor=10.0, height=height, **options)


# --- OpenMM -----------------------------------------------------------------------------------------------------------


def openmm_run(built, platform: str, directory: str | None = None):
    """`app.Metadynamics` of one walker as its documentation has it: hills of 1.2 kJ/mol every 500 steps."""
    system = openmm.XmlSerializer.clone(built.system)
    for atom in range(system.getNumParticles()):
        system.setParticleMass(atom, MASS * unit.amu)
    biased = []
    for atoms in (PHI.atoms, PSI.atoms):
        force = openmm.CustomTorsionForce("theta")
        force.addTorsion(*atoms)
        biased.append(app.BiasVariable(force, -math.pi, math.pi, 0.3, True))
    method = app.Metadynamics(
        system, biased, TEMPERATURE * unit.kelvin, 10.0, 1.2 * unit.kilojoules_per_mole, 500, saveFrequency=None,
        biasDir=directory,
    )  # fmt: skip
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 2.0, TIME_STEP)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    simulation = app.Simulation(
        built.topology, system, integrator, openmm.Platform.getPlatformByName(platform), properties
    )
    simulation.context.setPositions(built.positions.numpy())
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(TEMPERATURE)
    return method, simulation


def openmm_difference(method) -> float:
    """Delta F of 0 < phi < 2 rad against the rest, in kT, from the bias."""
    free = torch.from_numpy(method.getFreeEnergy().value_in_unit(unit.kilojoules_per_mole))
    log_density = -free / (8.31446261815324e-3 * TEMPERATURE)  # axes: psi, phi; both ends of each included
    phi = torch.linspace(-math.pi, math.pi, log_density.shape[1], dtype=torch.float64)
    weight = torch.exp(log_density - log_density.max())[:-1, :-1].sum(dim=0)
    inside = (phi[:-1] > 0) & (phi[:-1] < 2)
    return float(torch.log(weight[~inside].sum() / weight[inside].sum()))


# --- what is measured -------------------------------------------------------------------------------------------------


def speed(repeats: int, seconds: float) -> None:
    """Walker-steps a second, in turn."""
    built, energy = molecule()
    ways = {}
    for platform in ("Reference", "CPU"):
        method, simulation = openmm_run(built, platform)
        ways[f"OpenMM {platform}, 1 walker"] = lambda m=method, s=simulation: (m.step(s, 500), 500)[1]
    generator = torch.Generator().manual_seed(0)
    for walkers in (1, 16, 64, 256, 1024):
        run = Metadynamics(
            energy, [PHI, PSI], hills_bias(energy.kT), temperature=TEMPERATURE, time_step=TIME_STEP, friction=2.0,
            mass=MASS, pace=50,
        )  # fmt: skip
        start = built.positions.float().expand(walkers, -1, -1).contiguous()
        state = [run.init(generator, start)]

        def advance(run=run, state=state, walkers=walkers):
            for state[0], _ in run.fill(generator, state[0], 2):  # noqa: B020
                pass
            return 100 * walkers

        ways[f"feynkac, {walkers} walkers"] = advance
    plain = Langevin(energy, TEMPERATURE, TIME_STEP, 2.0, MASS)
    walking = [plain.init(generator, built.positions.float().expand(1024, -1, -1).contiguous())]

    def unbiased():
        walking[0] = plain.step(generator, walking[0], 100)
        return 100 * 1024

    ways["feynkac, 1024 walkers, no bias"] = unbiased
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(repeats), disable=None):
        for name, way in ways.items():
            start_time, done = time.perf_counter(), 0
            while time.perf_counter() - start_time < seconds:
                done += way()
            rates[name].append(done / (time.perf_counter() - start_time))
    best = max((name for name in ways if "OpenMM" in name), key=lambda name: statistics.median(rates[name]))
    print(f"| way | walker-steps a second | over {best} (spread) |\n|---|---|---|")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates[best], strict=True)]
        print(
            f"| {name} | {statistics.median(found):,.0f} | {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f} .. {max(ratios):.1f}) |"
        )


def hills(repeats: int) -> None:
    """Microseconds of an evaluation with its gradient for 1,000 walkers, against the number of hills."""
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(1000, 2, generator=generator, dtype=torch.float64) - 0.5) * 2 * math.pi
    print("| hills | grid, us | kept one by one, us | merged at half a width, us (kernels left) |\n|---|---|---|---|")
    for count in (100, 1000, 10_000, 100_000):
        centers = (torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5) * 2 * math.pi
        widths, heights = torch.full_like(centers, 0.3), torch.ones(count, dtype=torch.float64)
        some = Hills(centers, widths, heights, torch.zeros(count, dtype=torch.float64))
        grid = hills_bias(2.494).with_hills(some)
        merged = hills_bias(2.494, compression=0.5)
        for part in torch.split(torch.arange(count), 1000):
            merged = merged.with_hills(some.rows(part))
        kept = replace(hills_bias(2.494), grid=None).with_hills(some) if count <= 10_000 else None
        row = []
        for bias in (grid, kept, merged):
            times = []
            for _ in range(repeats if bias is not None else 0):
                start = time.perf_counter()
                bias.value_and_gradient(points)
                times.append(time.perf_counter() - start)
            row.append(f"{1e6 * statistics.median(times):,.0f}" if times else "")
        print(f"| {count:,} | {row[0]} | {row[1]} | {row[2]} ({merged.n_kernels}) |", flush=True)


def accuracy(force_field: str, calls: int, seeds: int, openmm_seeds: int, walkers: int) -> None:
    """Delta F after the same number of force calls, and after the same time."""
    built, energy = molecule(force_field)
    reference = REFERENCE.get(force_field, math.nan)
    steps = calls // walkers
    length = steps * TIME_STEP
    settings = MetadynamicsSettings(
        walkers=walkers, fill_ps=0.3 * length, burn_in_ps=0.15 * length, production_ps=0.55 * length,
        temperature=TEMPERATURE, time_step=TIME_STEP, mass=MASS, record_steps=50,
    )  # fmt: skip
    print(
        "| way | force calls | wall, s | Delta F, kT | its own error | off the reference |\n|---|---|---|---|---|---|"
    )
    walls = []
    for kind in ("hills", "OPES"):
        for seed in range(seeds):
            bias = (
                hills_bias(energy.kT) if kind == "hills" else RepulsionBias.opes(VARIABLES, kT=energy.kT, barrier=50.0)
            )
            start = time.perf_counter()
            result = metadynamics(
                energy, built.positions.float(), [PHI, PSI], bias, settings, torch.Generator().manual_seed(seed)
            )
            wall = time.perf_counter() - start
            walls.append(wall)
            phi = result.values[..., 0].flatten()
            found = free_energy_difference(
                (phi > 0) & (phi < 2), result.log_weights.flatten(), kT=energy.kT, bootstrap=0, groups=result.groups
            )
            print(
                f"| feynkac {kind}, {walkers} walkers, seed {seed} | {result.energy_calls:,} | {wall:.0f} "
                f"| {found.value:.2f} | {found.std_error:.2f} | {found.value - reference:+.2f} |",
                flush=True,
            )
    budget = statistics.median(walls)
    for seed in range(openmm_seeds):
        method, simulation = openmm_run(built, "Reference")
        simulation.integrator.setRandomNumberSeed(seed + 1)
        start, told = time.perf_counter(), False
        for done in tqdm(range(5000, calls + 1, 5000), disable=None):
            method.step(simulation, 5000)
            wall = time.perf_counter() - start
            if (wall > budget and not told) or done == calls // 5000 * 5000:
                told = True
                value = openmm_difference(method)
                print(
                    f"| app.Metadynamics, run {seed} | {done:,} | {wall:.0f} | {value:.2f} | none "
                    f"| {value - reference:+.2f} |",
                    flush=True,
                )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "hills", "accuracy"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--calls", type=int, default=5_000_000)
    parser.add_argument("--force-field", choices=list(FORCE_FIELDS), default="amber99sbildn")
    parser.add_argument("--walkers", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--openmm-seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(), "\n")
    if options.part == "speed":
        speed(options.repeats, options.seconds)
    elif options.part == "hills":
        hills(options.repeats * 4)
    else:
        accuracy(options.force_field, options.calls, options.seeds, options.openmm_seeds, options.walkers)


if __name__ == "__main__":
    main()
