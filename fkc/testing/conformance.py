"""Checks that every resampler, kernel and model must pass; authors of plug-ins call them in their own tests.

A check returns what it measured, and raises :class:`ConformanceError` (an AssertionError) with the numbers if
it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..density import GeometricPath, LogDensity
from ..kernels.base import Kernel
from ..model import FeynmanKacModel
from ..resampling import Scheme, copies, get_scheme, resample
from ..smc import SMCResult, smc
from ..streams import Stream, generator_for
from ..weights import normalize
from .ztest import ZTest

__all__ = [
    "ConformanceError",
    "check_batch_equals_singles",
    "check_inputs_untouched",
    "check_kernel",
    "check_resampler",
    "check_same_seed_same_output",
]


class ConformanceError(AssertionError):
    """A plug-in breaks a rule that the library relies on."""


def check_inputs_untouched(function: Callable[..., Any], *args: Any) -> Any:
    """Calls ``function(*args)`` and compares every tensor among the arguments (mappings and sequences
    included) before and after.

    Returns:
        What the function returned.
    """
    before = [t.clone() for t in _tensors(args)]
    result = function(*args)
    for position, (old, new) in enumerate(zip(before, _tensors(args), strict=True)):
        if not torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)):
            raise ConformanceError(f"tensor {position} among the arguments was changed in place")
    return result


def check_resampler(
    scheme: str | Scheme, log_weights: Tensor, *, seed: int, repeats: int = 4000, limit: float = 5.0
) -> list[ZTest]:
    """Laws of resampling: valid ancestors, none of them dead, unbiased copy numbers, the stated variance.

    Args:
        scheme: name or :class:`feynkac.fkc.Scheme`.
        log_weights: ``(K,)``.
        seed: of the draws.
        repeats: populations drawn at once.
        limit: of the z-tests.

    Returns:
        A test of each particle's mean copy number, and one of the summed variance.
    """
    k = log_weights.numel()
    generator = generator_for(seed, 0)
    rows = log_weights.expand(repeats, k)
    ancestors = check_inputs_untouched(resample, rows.clone(), scheme, generator)
    _require(
        ancestors.dtype == torch.int64 and tuple(ancestors.shape) == (repeats, k),
        "ancestors not (P, K) int64",
    )
    _require(bool(((ancestors >= 0) & (ancestors < k)).all()), "an ancestor lies outside [0, K)")
    counts = copies(ancestors).to(torch.float64)
    expected = k * normalize(log_weights)
    _require(bool((counts[:, expected == 0] == 0).all()), "a dead particle was copied")
    tests = [ZTest.from_samples(counts[:, i], float(expected[i]), limit=limit) for i in range(k)]
    for i, test in enumerate(tests):
        tolerable = abs(test.estimate - test.expected) < 1e-9  # a count that never varies must be right
        _require(test.passed or tolerable, f"copies of particle {i} are biased: {test}")
    stated = float(get_scheme(scheme).copy_variance(normalize(log_weights)[None])[0])
    spread = ZTest.from_samples((counts - expected).square().sum(dim=1), stated, limit=limit)
    _require(spread.passed or abs(spread.estimate - stated) < 1e-9, f"variance is not as stated: {spread}")
    return [*tests, spread]


def check_kernel(
    kernel: Kernel,
    density: LogDensity,
    exact_samples: Tensor,
    *,
    step_size: float,
    moves: int,
    seed: int,
    functions: Mapping[str, tuple[Callable[[Tensor], Tensor], float]],
    limit: float = 5.0,
) -> dict[str, ZTest]:
    """Started from exact samples, the kernel (with its weight, if it has one) keeps every expectation.

    Args:
        kernel: to be judged.
        density: the target; may be unnormalised.
        exact_samples: ``(N, *event)`` independent draws from it.
        step_size: of the kernel.
        moves: how many moves to make.
        seed: of the moves.
        functions: name -> (function ``(N, *event)`` -> ``(N,)``, its exact mean).
        limit: of the z-tests.

    Returns:
        The z-tests by name; ``"weight"`` is that of the mean weight (1).
    """
    generators = (generator_for(seed, 0, Stream.NOISE),)
    path = GeometricPath.single(density, 1, device=exact_samples.device)
    sizes = torch.full((1,), step_size, dtype=torch.float64, device=exact_samples.device)
    point = path.evaluate(exact_samples[None].clone(), score=kernel.needs_score)
    log_weight = torch.zeros(point.log_prob.shape[:2], dtype=torch.float64)
    for _ in range(moves):
        moved = check_inputs_untouched(kernel, generators, point, path, sizes)
        _require(not kernel.exact or bool((moved.log_weight == 0).all()), "an exact kernel returned a weight")
        point, log_weight = moved.point, log_weight + moved.log_weight
    _require(not torch.equal(point.x[0], exact_samples), "the kernel does not move")
    weight = log_weight[0].exp()
    tests = {
        name: ZTest.from_samples(weight * function(point.x[0]), expected, limit=limit)
        for name, (function, expected) in functions.items()
    }
    if not kernel.exact:
        tests["weight"] = ZTest.from_samples(weight, 1.0, limit=limit)
    for name, test in tests.items():
        _require(test.passed, f"the kernel does not keep the target, {name}: {test}")
    return tests


def check_batch_equals_singles(
    model: FeynmanKacModel, *, particles: int, populations: int, seed: int, **options: Any
) -> SMCResult:
    """Population 0 gives the same bits alone as with others beside it; and a shorter batch is a part of a
    longer one."""
    batch = smc(model, particles=particles, populations=populations, seed=seed, **options)
    for size in sorted({1, max(populations - 1, 1)}):
        part = smc(model, particles=particles, populations=size, seed=seed, **options)
        _same_bits(part.x, batch.x[:size], f"particles of {size} of {populations} populations")
        _same_bits(part.log_weights, batch.log_weights[:size], "log-weights")
        _same_bits(part.log_evidence, batch.log_evidence[:size], "log-evidence")
    return batch


def check_same_seed_same_output(
    model: FeynmanKacModel, *, particles: int, populations: int, seed: int, **options: Any
) -> None:
    """The same seed gives the same bits whatever the global generator holds, and another seed gives
    others."""
    first = smc(model, particles=particles, populations=populations, seed=seed, **options)
    state = torch.random.get_rng_state()
    second = smc(model, particles=particles, populations=populations, seed=seed, **options)
    _require(torch.equal(state, torch.random.get_rng_state()), "the global generator was used")
    _same_bits(first.x, second.x, "particles")
    _same_bits(first.log_evidence, second.log_evidence, "log-evidence")
    other = smc(model, particles=particles, populations=populations, seed=seed + 1, **options)
    _require(not torch.equal(first.x, other.x), "another seed gave the same particles")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for v in value for t in _tensors(v)]
    fields = getattr(value, "__dataclass_fields__", {})
    return [t for name in fields for t in _tensors(getattr(value, name))]


def _same_bits(one: Tensor, other: Tensor, what: str) -> None:
    if not torch.equal(one, other):
        gap = float((one - other).abs().max()) if one.shape == other.shape else math.nan
        raise ConformanceError(f"{what} differ between runs that must agree bit for bit (largest gap {gap})")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConformanceError(message)
