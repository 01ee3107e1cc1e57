"""Systematic resampling of a million particles, beside the `particles` package, in one process.

    python tests/benchmarks/bench_resampling.py [--particles 1000000] [--repeats 31] [--threads 1]

Two pairs are timed, each with its calls interleaved so that a busy moment hits both: from normalised weights to
ancestors (the inverse-CDF step alone), and from raw log-weights to ancestors (what a sampler does, normalisation
included). Prints one JSON object; a ratio above one means that feynkac is faster. The spread of a ratio is its
interquartile range over the repeats.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from feynkac.fkc import SCHEMES, generator_for, normalize, resample


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def interleaved(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, float]:
    for _ in range(3):  # compilation, caches
        ours(), theirs()
    pairs = [(milliseconds(ours), milliseconds(theirs)) for _ in range(repeats)]
    ratios = sorted(b / a for a, b in pairs)
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "feynkac_ms": round(statistics.median(a for a, _ in pairs), 3),
        "particles_ms": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_quartiles": [round(low, 2), round(high, 2)],
    }


def median_ms(scheme: str, log_weights: torch.Tensor, generator: torch.Generator) -> float:
    return statistics.median(milliseconds(lambda: resample(log_weights, scheme, generator)) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    import particles
    from particles import resampling as reference

    n, generator = arguments.particles, generator_for(0, 0)
    log_weights = torch.randn((1, n), generator=generator, dtype=torch.float64)
    raw = log_weights[0].numpy()
    weights = normalize(log_weights)
    scheme = SCHEMES["systematic"]

    def ours() -> torch.Tensor:
        u = torch.rand((1, 1), generator=generator, dtype=torch.float64)
        return scheme.ancestors(weights, u)

    def theirs() -> np.ndarray:
        return reference.systematic(weights[0].numpy())

    results = {
        "from_weights": interleaved(ours, theirs, arguments.repeats),
        "from_log_weights": interleaved(
            lambda: resample(log_weights, "systematic", generator),
            lambda: reference.systematic(reference.exp_and_normalise(raw)),
            arguments.repeats,
        ),
        "schemes_ms": {name: round(median_ms(name, log_weights, generator), 1) for name in SCHEMES},
    }
    machine = {
        "processor": cpu_name(),
        "threads": arguments.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "particles": getattr(particles, "__version__", "unknown"),
    }
    print(json.dumps({"particles": n, "repeats": arguments.repeats, "machine": machine, **results}, indent=1))


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
