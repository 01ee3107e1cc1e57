"""Long reference for alanine dipeptide at 300 K: replica exchange, errors over ladders.

    python data/scripts/reference_alanine_dipeptide.py OUTPUT.json [--frames FRAMES.npz] [--production-ps 800]
        [--force-field amber99sbildn.xml amber99_obc.xml]

Ladders are independent from the melt on, so every error bar is the standard error over ladders. ``--frames`` keeps the
300 K frames (large; not shipped) for training. Takes about 25 minutes on one core of a 2024 server processor.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from feynkac.molecular.cvs import Torsion
from feynkac.molecular.dynamics import EnsembleSettings, sample_ensemble
from feynkac.molecular.energies import BatchedForceField
from feynkac.molecular.free_energy import free_energy_difference
from feynkac.molecular.systems import load_system

SEED = 20261122


def over_ladders(values: Tensor) -> dict[str, float]:
    """Mean of (T, L) values with the standard error over ladders."""
    means = values.double().mean(dim=0)
    return {"value": means.mean().item(), "std_error": (means.std() / len(means) ** 0.5).item()}


def as_list(values: np.ndarray, keep: np.ndarray) -> list[float | None]:
    """Numbers of the bins that were visited; None elsewhere."""
    return [float(v) if k else None for v, k in zip(values, keep, strict=True)]


def main() -> None:
    """Run, analyse, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--force-field", nargs="+", default=["amber99sbildn.xml", "amber99_obc.xml"])
    parser.add_argument("--ladders", type=int, default=192)
    parser.add_argument("--burn-in-ps", type=float, default=150.0)
    parser.add_argument("--production-ps", type=float, default=800.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pdb = Path(__file__).parents[1] / "molecules" / "alanine_dipeptide.pdb"
    built = load_system(pdb, force_field=options.force_field)
    energy = BatchedForceField.from_openmm(built.system, topology=built.topology, temperature=300.0)
    settings = EnsembleSettings(
        ladders=options.ladders, burn_in_ps=options.burn_in_ps, production_ps=options.production_ps
    )
    bars: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(total=total, desc=stage, mininterval=10))
        bar.update(done - bar.n)

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(SEED)
    ensemble = sample_ensemble(energy, built.positions.float(), settings, generator, progress=progress)
    records, ladders = ensemble.energy.shape
    flat = ensemble.positions.flatten(0, 1)

    def torsion(i: int, j: int, k: int, m: int) -> Tensor:
        function = Torsion(i, j, k, m)
        parts = [function(part) for part in torch.split(flat, 100_000)]
        return torch.cat(parts).double().reshape(records, ladders)

    phi, psi = torsion(4, 6, 8, 14), torsion(6, 8, 14, 16)
    inside = (phi > 0) & (phi < 2)
    groups = torch.arange(ladders).expand(records, ladders)
    difference = free_energy_difference(
        inside.flatten(), torch.zeros(inside.numel()), kT=energy.kT, bootstrap=0, groups=groups.flatten()
    )
    degrees = torch.pi / 180
    alpha = ~inside & (psi > -120 * degrees) & (psi < 50 * degrees)
    edges = np.linspace(-np.pi, np.pi, 37)
    counts = np.stack([np.histogram(phi[:, i].numpy(), edges)[0] for i in range(ladders)]) / records
    density = counts.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        profile = -np.log(density)
        error = counts.std(axis=0, ddof=1) / np.sqrt(ladders) / density
    keep = density > 0
    result = {
        "system": f"Ace-Ala-Nme, {' + '.join(options.force_field)}, NoCutoff, no constraints, 300 K",
        "method": "replica exchange in temperature, BAOAB; errors: standard error over independent ladders",
        "seed": SEED,
        "settings": settings.__dict__,
        "frames": records * ladders,
        "energy_calls": ensemble.energy_calls,
        "wall_seconds": round(time.perf_counter() - start),
        "round_trips": ensemble.round_trips,
        "exchange_acceptance": [round(a, 4) for a in ensemble.acceptance.tolist()],
        "versions": {name: version(name) for name in ("feynkac", "torch", "openmm")},
        "delta_f_kT": {"value": difference.value, "std_error": difference.std_error},
        "probability_0_phi_2": {"value": difference.probability, "std_error": difference.probability_std_error},
        "probability_alpha": over_ladders(alpha),
        "energy_kJ_mol": over_ladders(ensemble.energy),
        "energy_std_kJ_mol": ensemble.energy.std().item(),
        "cos_phi": over_ladders(phi.cos()),
        "sin_phi": over_ladders(phi.sin()),
        "cos_psi": over_ladders(psi.cos()),
        "probability_cis_amide_1": over_ladders(torsion(1, 4, 6, 8).cos() > 0),
        "probability_cis_amide_2": over_ladders(torsion(8, 14, 16, 18).cos() > 0),
        "phi_profile": {
            "bin_centres_degrees": [float(-175 + 10 * i) for i in range(36)],
            "free_energy_kT": as_list(profile - profile[keep].min(), keep),
            "std_error_kT": as_list(error, keep),
        },
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.frames:
        np.savez(options.frames, positions=ensemble.positions.numpy(), energy=ensemble.energy.numpy())
    print(json.dumps({k: result[k] for k in ("delta_f_kT", "energy_kJ_mol", "wall_seconds")}))


if __name__ == "__main__":
    main()
