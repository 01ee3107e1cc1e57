"""Random streams: two for each population (model noise, resampling), all derived from one seed.

A population's streams depend on the seed and on the population's own index only, so its result is the same
alone or in a batch. Nothing here, or anywhere else in the library, touches torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Generator, Tensor

__all__ = ["Stream", "Streams", "generator_for", "normal", "split_seed", "uniform"]

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


class Stream(IntEnum):
    """What a population's random stream is for."""

    NOISE = 0
    RESAMPLING = 1


def _mix64(z: int) -> int:
    """Output function of SplitMix64 (Steele, Lea and Flood 2014, figure 16): a bijection of 64-bit words."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def _mix32(z: int) -> int:
    """Finaliser of MurmurHash3: a bijection of 32-bit words."""
    z = ((z ^ (z >> 16)) * 0x85EBCA6B) & _MASK32
    z = ((z ^ (z >> 13)) * 0xC2B2AE35) & _MASK32
    return z ^ (z >> 16)


def split_seed(seed: int, index: int, stream: int = 0) -> int:
    """Child seed of ``seed`` for item ``index`` and stream 0 or 1.

    torch's CPU generator reads only the low 32 bits of a seed, and its CUDA generator reads all 64. The low
    half is therefore a bijection of ``(index, stream)``, so that no two children of one seed can share a CPU
    stream (a plain 64-bit hash cut to 32 bits would, for 1e4 populations in one run out of twenty); the high
    half is a hash of all three.

    Args:
        seed: any integer.
        index: population (or chunk), below 2**31.
        stream: 0 or 1, see :class:`Stream`.

    Raises:
        ValueError: index or stream out of range.
    """
    if not 0 <= index < 2**31 or stream not in (0, 1):
        raise ValueError(f"index must be in [0, 2**31) and stream 0 or 1, got {index} and {stream}")
    root = _mix64(seed & _MASK64)
    counter = 2 * index + stream
    low = _mix32(_mix32(counter ^ (root & _MASK32)) ^ (root >> 32))
    high = _mix64(root ^ _mix64(counter)) >> 33  # 31 bits: the seed stays a non-negative signed 64-bit number
    return (high << 32) | low


def generator_for(seed: int, index: int, stream: int = 0, *, device: torch.device | str = "cpu") -> Generator:
    """A new generator on ``device`` seeded by :func:`split_seed`."""
    generator = Generator(device=device)
    generator.manual_seed(split_seed(seed, index, stream))
    return generator


@dataclass(frozen=True, eq=False)
class Streams:
    """The generators of P populations.

    Attributes:
        noise: P generators for the model (initial law, kernels).
        resampling: P generators for the resampler.
    """

    noise: tuple[Generator, ...]
    resampling: tuple[Generator, ...]

    @classmethod
    def from_seed(cls, seed: int, populations: int, *, first: int = 0, device: torch.device | str = "cpu") -> Streams:
        """Streams of populations ``first .. first + populations - 1`` of a run with this seed."""
        indices = range(first, first + populations)
        return cls(
            tuple(generator_for(seed, p, Stream.NOISE, device=device) for p in indices),
            tuple(generator_for(seed, p, Stream.RESAMPLING, device=device) for p in indices),
        )

    def select(self, rows: Sequence[int]) -> Streams:
        """The same generators (shared, not copied) for some of the populations."""
        return Streams(tuple(self.noise[r] for r in rows), tuple(self.resampling[r] for r in rows))

    def state_dict(self) -> dict[str, Tensor]:
        """Generator states, ``(P, n_bytes)`` uint8 each."""
        return {
            "noise": torch.stack([g.get_state() for g in self.noise]),
            "resampling": torch.stack([g.get_state() for g in self.resampling]),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], *, device: torch.device | str = "cpu") -> Streams:
        """Streams that go on exactly where :meth:`state_dict` was taken."""
        return cls(_restore(state["noise"], device), _restore(state["resampling"], device))


def _restore(states: Tensor, device: torch.device | str) -> tuple[Generator, ...]:
    generators = tuple(Generator(device=device) for _ in range(states.shape[0]))
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.cpu().clone())  # not a view: the offset of a view is ignored
    return generators


def normal(generators: Sequence[Generator], shape: Sequence[int], *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal draws ``(P, *shape)``: row p comes from generator p alone."""
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=dtype, device=g.device) for g in generators])


def uniform(generators: Sequence[Generator], shape: Sequence[int], *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform draws on [0, 1), ``(P, *shape)``: row p comes from generator p alone."""
    return torch.stack([torch.rand(tuple(shape), generator=g, dtype=dtype, device=g.device) for g in generators])
