"""The MBAR equations, solved by pymbar."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["MbarError", "solve_mbar"]

_BALANCE = 1e-5
"""Largest relative violation of sum_n P(k | n) = N_k that counts as solved."""


class MbarError(RuntimeError):
    """The equations have no solution within tolerance: rounds that do not overlap."""


def solve_mbar(u: Tensor, size: Tensor) -> Tensor:
    """Reduced free energies (K,), up to a constant, of rounds that all have samples.

    Args:
        u: (K, n) reduced biases, samples in the order of the rounds.
        size: (K,) samples of each round.

    Raises:
        MbarError: when no solver balances every round.
        ImportError: without pymbar.
    """
    if u.shape[0] == 1:
        return torch.zeros(1, dtype=torch.float64)
    # biases of different height are brought to one scale first: pymbar's solvers do not get across hundreds of kT
    own = torch.stack([part[k].mean() for k, part in enumerate(torch.split(u, size.tolist(), dim=1))])
    level = u - own[:, None]
    worst = math.inf
    newton = ({"method": "adaptive", "tol": 1e-10, "options": {"min_sc_iter": 0}},)
    for protocol in (newton, "robust"):
        with _quiet_pymbar() as pymbar:
            # a seed that is given keeps pymbar from seeding numpy's global generator; no random number is drawn
            f = torch.as_tensor(pymbar.MBAR(level.numpy(), size.numpy(), solver_protocol=protocol, rseed=0).f_k).clone()
        share = torch.softmax((torch.log(size.double()) + f)[:, None] - level, dim=0).sum(1)
        worst = float(((share - size) / size).abs().max())
        if worst < _BALANCE:
            return f + own
    raise MbarError(f"the MBAR equations are violated by {worst:.1e} of a round: do the rounds overlap at all?")


@contextmanager
def _quiet_pymbar() -> Iterator[Any]:
    """pymbar without its log and the solver's warnings: convergence is checked here."""
    logger = logging.getLogger("pymbar")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        import pymbar

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield pymbar
    except ImportError as error:
        raise ImportError("mbar needs pymbar: pip install 'feynkac[molecular]'") from error
    finally:
        logger.setLevel(level)
