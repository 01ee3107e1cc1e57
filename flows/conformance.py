"""Checks that every proposal must pass: authors of adapters call them in their own tests.

A check raises :class:`feynkac.fkc.testing.conformance.ConformanceError` with the numbers if it fails, and returns what
it measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..fkc.testing.conformance import ConformanceError, check_inputs_untouched
from ..fkc.testing.ztest import ZTest
from ..fkc.weights import effective_sample_size
from .proposal import Proposal

__all__ = [
    "check_chunks",
    "check_gradient",
    "check_normalisation",
    "check_proposal",
    "check_round_trip",
    "check_same_seed_same_output",
]


def check_proposal(
    proposal: Proposal,
    *,
    seed: int,
    n: int = 2000,
    tolerance: float,
    test_log_density: Callable[[Tensor], Tensor] | None = None,
    gradient: bool = True,
) -> None:
    """Run every check.

    Args:
        proposal: under test.
        seed: of all draws.
        n: draws of the round trip; the normalisation uses ten times as many.
        tolerance: of log q: 1e-3 for float32, 1e-9 for float64.
        test_log_density: normalised log-density for :func:`check_normalisation`; a Gaussian fitted to draws if None.
        gradient: whether log_prob can be differentiated in x.
    """
    check_round_trip(proposal, seed=seed, n=n, tolerance=tolerance)
    check_same_seed_same_output(proposal, seed=seed)
    check_chunks(proposal, seed=seed, tolerance=tolerance)
    if proposal.facts.normalised:
        check_normalisation(proposal, seed=seed, n=10 * n, test_log_density=test_log_density)
    if gradient:
        check_gradient(proposal, seed=seed)


def check_round_trip(proposal: Proposal, *, seed: int, n: int, tolerance: float) -> float:
    """Shapes and dtypes are as promised, and log_prob gives the log q that came with the draws. Returns the gap."""
    x, log_q = proposal.sample_and_log_prob(n, generator=_generator(seed))
    _require(tuple(x.shape) == (n, *proposal.event_shape), f"draws have shape {tuple(x.shape)}")
    again = check_inputs_untouched(proposal.log_prob, x).detach()
    for name, values in (("sample_and_log_prob", log_q), ("log_prob", again)):
        _require(tuple(values.shape) == (n,), f"log q of {name} has shape {tuple(values.shape)}, not ({n},)")
        _require(values.dtype == torch.float64, f"log q of {name} is {values.dtype}, not float64")
        _require(bool(values.isfinite().all()), f"log q of {name} is not finite on the proposal's own draws")
    gap = float((again - log_q).abs().max())
    _require(gap <= tolerance, f"log_prob differs by {gap:.3g} from the log q of the draws; {tolerance:.3g} allowed")
    return gap


def check_same_seed_same_output(proposal: Proposal, *, seed: int, n: int = 64) -> None:
    """Draws come from the generator alone: same seed same bits, another seed other draws, global stream untouched."""
    first = proposal.sample_and_log_prob(n, generator=_generator(seed))
    state = torch.random.get_rng_state()
    second = proposal.sample_and_log_prob(n, generator=_generator(seed))
    _require(torch.equal(state, torch.random.get_rng_state()), "the global generator was used")
    for name, one, other in zip(("draws", "log q"), first, second, strict=True):
        _require(torch.equal(one, other), f"{name} differ between two calls with the same seed")
    third = proposal.sample_and_log_prob(n, generator=_generator(seed + 1))
    _require(not torch.equal(first[0], third[0]), "another seed gave the same draws")
    generator = _generator(seed)
    pair = [proposal.sample_and_log_prob(n, generator=generator)[0] for _ in range(2)]
    _require(not torch.equal(*pair), "drawing twice from one generator gave the same draws: it does not advance")


def check_chunks(proposal: Proposal, *, seed: int, tolerance: float, n: int = 60) -> None:
    """log_prob of a sample does not depend on what else is in the batch."""
    x, _ = proposal.sample_and_log_prob(n, generator=_generator(seed))
    whole = proposal.log_prob(x).detach()
    for size in (1, 7, n - 1):
        parts = torch.cat([proposal.log_prob(part).detach() for part in torch.split(x, size)])
        gap = float((parts - whole).abs().max())
        _require(gap <= tolerance, f"log_prob in chunks of {size} differs by {gap:.3g} from one batch of {n}")


def check_normalisation(
    proposal: Proposal,
    *,
    seed: int,
    n: int,
    test_log_density: Callable[[Tensor], Tensor] | None = None,
    limit: float = 4.0,
) -> ZTest:
    """E_q[g/q] = 1 for a normalised density g with lighter tails than q.

    Args:
        proposal: under test.
        seed: of the draws.
        n: draws of the estimate; a fitted g uses another n.
        test_log_density: log g (n,) of x, normalised in the same base measure. If None, a Gaussian with the mean and
            0.8^2 times the covariance of draws of q, over all the numbers of x.
        limit: in standard errors.

    Raises:
        ConformanceError: off by more than ``limit``, or g/q varies so much that nothing is shown.
    """
    if test_log_density is None:
        if proposal.facts.base_measure != "euclidean":
            raise ValueError(f"a test density is needed for base measure {proposal.facts.base_measure!r}")
        test_log_density = _fitted_gaussian(proposal.sample_and_log_prob(n, generator=_generator(seed + 1))[0])
    x, log_q = proposal.sample_and_log_prob(n, generator=_generator(seed))
    log_ratio = test_log_density(x).detach().double() - log_q
    ess = float(effective_sample_size(log_ratio))
    _require(ess >= 100, f"the test density is too unlike q to show anything: ESS {ess:.0f} of {n} draws")
    test = ZTest.from_samples(log_ratio.exp(), 1.0, limit=limit)
    _require(test.passed, f"q is not normalised: E_q[g/q] = {test}")
    return test


def check_gradient(proposal: Proposal, *, seed: int, n: int = 5, step: float = 1e-4, tolerance: float = 1e-3) -> float:
    """The gradient of log_prob agrees with central differences along random directions. Returns the relative gap."""
    x, _ = proposal.sample_and_log_prob(n, generator=_generator(seed))
    x = x.detach().double()
    direction = torch.randn(x.shape, generator=_generator(seed + 1), dtype=torch.float64).to(x.device)
    direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    spread = float(x.flatten(1).std(dim=0).mean()) or 1.0
    h = step * spread
    point = x.clone().requires_grad_()
    log_q = proposal.log_prob(point)
    _require(log_q.requires_grad, "log_prob does not carry a gradient")
    (gradient,) = torch.autograd.grad(log_q.sum(), point)
    analytic = (gradient * direction).flatten(1).sum(-1)
    with torch.no_grad():
        numeric = (proposal.log_prob(x + h * direction) - proposal.log_prob(x - h * direction)) / (2 * h)
    gap = float(((analytic - numeric).abs() / (numeric.abs() + 1.0 / spread)).max())
    _require(gap <= tolerance, f"the gradient of log_prob is off by {gap:.3g} (relative) from central differences")
    return gap


def _fitted_gaussian(x: Tensor) -> Callable[[Tensor], Tensor]:
    rows = x.flatten(1).double()
    mean = rows.mean(0)
    factor = torch.linalg.cholesky(rows.T.cov().reshape(rows.shape[1], -1)) * 0.8
    constant = factor.diagonal().log().sum() + 0.5 * rows.shape[1] * math.log(2 * math.pi)

    def log_density(values: Tensor) -> Tensor:
        centred = (values.flatten(1).double() - mean).T
        white: Tensor = torch.linalg.solve_triangular(factor, centred, upper=False)
        log_g: Tensor = -0.5 * white.square().sum(0) - constant
        return log_g

    return log_density


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConformanceError(message)
