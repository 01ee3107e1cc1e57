"""Energies with forces a second: the batched force field against the best that OpenMM gives on the same two cores.

    python tests/benchmarks/bench_energies.py [--json FILE] [--seconds 1.0] [--repeats 7]

Every way is measured in turn, `repeats` times around, in one process tree; a speed is the median over the rounds and
a ratio the median of the rounds' ratios with its extremes. OpenMM's ways: Reference, CPU with 1 and 2 threads, and
two single-thread processes of either, one configuration at a time. No GPU is used.
"""

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from machine import describe

from feynkac.molecular.energies import BatchedForceField, OpenMMEnergy, native_status
from feynkac.molecular.systems import load_system

MOLECULES = Path(__file__).parents[2] / "data" / "molecules"
CASES = [
    ("alanine_dipeptide", ("amber99sbildn.xml", "amber99_obc.xml"), 3.0),
    ("alanine_dipeptide", ("amber14-all.xml", "implicit/obc1.xml"), 20.0),
    ("chignolin", ("amber99sbildn.xml", "amber99_obc.xml"), 1.5),
    ("chignolin", ("amber14-all.xml", "implicit/obc1.xml"), 3.0),
]
BATCH = 1024
THREADS = 2


def speed(energy, positions: torch.Tensor, seconds: float) -> float:
    """Energies with forces a second, over at least ``seconds``."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        energy.energy_and_forces(positions)
        done += len(positions)
    return done / (time.perf_counter() - start)


def work_a_configuration(n_atoms: int, width: int = 4) -> dict[str, float]:
    """Floating-point operations and bytes of the kernel, counted in forcefield.cpp for a generalized Born system."""
    pairs = n_atoms * (n_atoms - 1) / 2
    # a pair: two burial integrals 2 x (45 + logarithm 20), pair energies 75 + exponential 20, chain rule 25;
    # bonded terms: about 800 an atom
    return {
        "flop": pairs * 250 + n_atoms * 800,
        "bytes_in_and_out": 2 * 3 * n_atoms * width + 8,
        "bytes_of_scratch": (12 * n_atoms + 2 * pairs) * width,
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(f"{describe()}, OpenMM {version('openmm')}, {THREADS} threads")
    print(f"compiled kernel: {native_status().reason}")
    results = []
    for name, force_field, goal in CASES:
        built = load_system(MOLECULES / f"{name}.pdb", force_field=force_field)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((BATCH, built.n_atoms, 3), generator=generator, dtype=torch.float64)
        positions = built.positions[None] + 0.003 * noise
        few = positions[:64]
        ways = {
            "feynkac float32": (BatchedForceField.from_openmm(built.system), positions.float()),
            "feynkac float64": (BatchedForceField.from_openmm(built.system, dtype=torch.float64), positions),
            "feynkac float32, torch": (BatchedForceField.from_openmm(built.system, backend="torch"), positions.float()),
        }
        pools = []
        for platform in ("Reference", "CPU"):
            ways[f"OpenMM {platform}, 1 thread"] = (OpenMMEnergy(built.system, platform=platform), few[:16])
            pools.append(OpenMMEnergy(built.system, platform=platform, workers=2))
            ways[f"OpenMM {platform}, 2 processes"] = (pools[-1], few)
        ways["OpenMM CPU, 2 threads"] = (OpenMMEnergy(built.system, platform="CPU", threads=2), few[:16])
        for energy, batch in ways.values():
            energy.energy_and_forces(batch)
        rounds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, (energy, batch) in ways.items():
                rounds[way].append(speed(energy, batch, options.seconds))
        for pool in pools:
            pool.close()
        median = {way: statistics.median(values) for way, values in rounds.items()}
        best = max((way for way in ways if way.startswith("OpenMM")), key=lambda way: median[way])
        ratios = sorted(a / b for a, b in zip(rounds["feynkac float32"], rounds[best], strict=True))
        work = work_a_configuration(built.n_atoms)
        print(f"\n{name} ({built.n_atoms} atoms), {' + '.join(force_field)}, batch {BATCH}")
        for way, value in median.items():
            spread = (min(rounds[way]), max(rounds[way]))
            print(f"  {way:28s} {value:12,.0f} /s   ({spread[0]:,.0f} .. {spread[1]:,.0f})")
        print(
            f"  feynkac float32 / {best}: {statistics.median(ratios):.1f}x ({ratios[0]:.1f} .. {ratios[-1]:.1f}), "
            f"goal {goal:g}x"
        )
        per_second = median["feynkac float32"]
        print(
            f"  work a configuration: {work['flop'] / 1e3:.0f} kflop ({work['flop'] * per_second / 1e9:.0f} Gflop/s), "
            f"{work['bytes_in_and_out']:.0f} bytes moved ({work['bytes_in_and_out'] * per_second / 1e9:.2f} GB/s), "
            f"{work['bytes_of_scratch'] / 1e3:.1f} kB of scratch while in flight"
        )
        results.append(
            {
                "molecule": name,
                "force_field": force_field,
                "per_second": median,
                "best_openmm": best,
                "ratio": [statistics.median(ratios), ratios[0], ratios[-1]],
                "goal": goal,
                **work,
            }
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
