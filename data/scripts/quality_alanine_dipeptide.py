"""Measure the shipped proposal of alanine dipeptide: 20 repeats of 20,000 draws, against the long reference.

    python data/scripts/quality_alanine_dipeptide.py [--repeats 20] [--draws 20000] [--write]

Prints raw and Pareto-smoothed effective sample size, k-hat, log Z and Delta F of 0 < phi < 2 rad, the spread of the
repeats beside the error that each repeat states, and the distance to the reference. ``--write`` keeps the numbers in
the flow's folder as quality.json.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch

from feynkac.fkc.weights import effective_sample_size
from feynkac.flows import importance_sample, load_flow
from feynkac.molecular.cvs import Torsion
from feynkac.molecular.energies import BatchedForceField
from feynkac.molecular.free_energy import free_energy_difference
from feynkac.molecular.systems import load_system

DATA = Path(__file__).parents[1]


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--flow", type=Path, default=DATA / "alanine_dipeptide_flow")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    built = load_system(
        DATA / "molecules" / "alanine_dipeptide.pdb", force_field=["amber99sbildn.xml", "amber99_obc.xml"]
    )
    energy = BatchedForceField.from_openmm(built.system, topology=built.topology, dtype=torch.float64)
    flow = load_flow(options.flow, elements=built.elements)
    phi = Torsion(4, 6, 8, 14)
    rows: list[dict[str, float]] = []
    start = time.perf_counter()
    for repeat in range(options.repeats):
        result = importance_sample(flow, energy, options.draws, seed=1000 + repeat, chunk_size=2000)
        angle = phi(result.x)
        difference = free_energy_difference((angle > 0) & (angle < 2), result.log_weights, kT=energy.kT, bootstrap=0)
        rows.append(
            {
                "ess_fraction": result.ess_fraction,
                "ess_fraction_smoothed": float(effective_sample_size(result.pareto.log_weights)) / options.draws,
                "khat": result.pareto.khat,
                "log_evidence": result.log_evidence,
                "log_evidence_std_error": result.log_evidence_std_error,
                "delta_f_kT": difference.value,
                "delta_f_std_error_kT": difference.std_error,
                "largest_weight": float((result.log_weights - result.log_weights.logsumexp(0)).exp().max()),
            }
        )
        print({name: round(value, 4) for name, value in rows[-1].items()})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    reference = json.loads((DATA / "references" / "alanine_dipeptide_300K.json").read_text())["delta_f_kT"]
    summary = {
        "draws": options.draws,
        "repeats": options.repeats,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "seconds_a_repeat": (time.perf_counter() - start) / options.repeats,
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "minimum_ess_fraction": min(columns["ess_fraction"]),
        "maximum_khat": max(columns["khat"]),
        "delta_f_spread_over_stated_error": statistics.stdev(columns["delta_f_kT"])
        / statistics.fmean(columns["delta_f_std_error_kT"]),
        "log_evidence_spread_over_stated_error": statistics.stdev(columns["log_evidence"])
        / statistics.fmean(columns["log_evidence_std_error"]),
        "reference_delta_f_kT": reference,
        "delta_f_minus_reference_kT": statistics.fmean(columns["delta_f_kT"]) - reference["value"],
    }
    print(json.dumps(summary, indent=1))
    if options.write:
        (options.flow / "quality.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
