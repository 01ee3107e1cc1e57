"""Random numbers for libraries that do not take a generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["borrowed_global_stream", "numpy_generator"]


def _child_seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**62, (1,), generator=generator, device=generator.device))


@contextmanager
def borrowed_global_stream(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global stream follows ``generator``; afterwards it is what it was before."""
    seed = _child_seed(generator)
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for device in devices:
            torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator seeded by the next number of ``generator``."""
    return np.random.default_rng(_child_seed(generator))
