"""Profiles of biased walkers against quadrature, twenty seeds a case: how far off, and whether the error bars say so.

    python tests/benchmarks/bench_known_pmfs.py [SEEDS]

Prints a table for docs/benchmarks.md. Half an hour on one core.
"""

import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.statistics.test_known_pmfs import CASES, WALKERS, runs


def main() -> None:
    """Run every case and print its row."""
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print("| case | RMSE, mean (worst seed), kT | error bar, kT | mean z^2 | mean z | without weights | s a run |")
    print("|---|---|---|---|---|---|---|")
    for name in tqdm(CASES, disable=None):
        start = time.perf_counter()
        deviations, errors, unweighted = runs(name, seeds)
        seconds = (time.perf_counter() - start) / seeds
        rms, z = deviations.square().mean(dim=1).sqrt(), deviations / errors
        squares = z.square().mean(dim=1)
        spread = float(squares.std()) / seeds**0.5
        print(
            f"| {name} | {float(rms.mean()):.3f} ({float(rms.max()):.3f}) | {float(errors.mean()):.3f} "
            f"| {float(squares.mean()):.2f} ± {spread:.2f} | {float(z.mean()):+.2f} "
            f"| {float(unweighted.square().mean(dim=1).sqrt().mean()):.1f} | {seconds:.1f} |"
        )
    print(f"\n{seeds} seeds, {WALKERS} walkers")


if __name__ == "__main__":
    main()
