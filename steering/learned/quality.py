"""How good a value is, level by level, on trajectories that it was not fitted to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .rollouts import Rollouts
from .value import LearnedValue

__all__ = ["LevelQuality", "assess", "binned"]

_CHUNK = 4096


@dataclass(frozen=True)
class LevelQuality:
    """Agreement of values and final rewards at one noise level; impossible samples are left out of the first four.

    Attributes:
        move: which.
        alpha: of the level.
        sigma: of the level.
        explained: share of the loss of the best constant that the value saves, 1 for a value that knows the reward.
            For a "mean" fit it is R^2; for "exp" the same with the deviance exp(t - g) - (t - g) - 1.
        correlation: of value and final reward.
        bias: 0 where calibrated, in units of the reward: mean of r - f, or for "exp" alpha log mean exp((r - f)/alpha).
        denoised_explained: as ``explained`` with r(x0-hat) as the value; None where it was not recorded.
        denoised_correlation: of r(x0-hat) and final reward.
    """

    move: int
    alpha: float
    sigma: float
    explained: float
    correlation: float
    bias: float
    denoised_explained: float | None = None
    denoised_correlation: float | None = None


def predictions(value: LearnedValue, rollouts: Rollouts) -> Tensor:
    """Values (n, L) float64 of all states."""
    columns = []
    for place in range(len(rollouts.moves)):
        levels = rollouts.levels[place].expand(len(rollouts), 2)
        clean = None if rollouts.clean is None else rollouts.clean[:, place]
        columns.append(value.evaluate(rollouts.states[:, place], levels, clean, chunk_size=_CHUNK))
    return torch.stack(columns, dim=1)


def assess(value: LearnedValue, held_out: Rollouts) -> list[LevelQuality]:
    """Quality at each recorded level.

    Args:
        value: fitted to other trajectories.
        held_out: n trajectories, the more the better: for "exp" all numbers have the noise of exp(r/alpha).
    """
    config = value.network.config
    found = predictions(value, held_out)
    possible = held_out.rewards.isfinite()
    rewards = held_out.rewards[possible]
    loss, temperature = str(config.loss), float(config.temperature)
    result = []
    for place, move in enumerate(held_out.moves.tolist()):
        f = found[possible, place]
        alpha, sigma = held_out.levels[place].tolist()
        base: tuple[float | None, float | None] = (None, None)
        if held_out.denoised_rewards is not None:
            judged = held_out.denoised_rewards[possible, place]
            base = (_explained(judged, rewards, loss, temperature), _correlation(judged, rewards))
        explained, correlation = _explained(f, rewards, loss, temperature), _correlation(f, rewards)
        bias = _bias(found[:, place], held_out.rewards, loss, temperature)
        result.append(LevelQuality(move, alpha, sigma, explained, correlation, bias, *base))
    return result


def binned(value: LearnedValue, held_out: Rollouts, bins: int = 10) -> tuple[Tensor, Tensor]:
    """Calibration over all levels: mean value, and soft value (or mean) of the rewards, (bins,) each; equal counts."""
    config = value.network.config
    f = predictions(value, held_out)
    order = f.flatten().argsort()
    rewards = held_out.rewards[:, None].expand_as(f).flatten()[order]
    parts = list(zip(f.flatten()[order].chunk(bins), rewards.chunk(bins), strict=True))
    centres = torch.stack([values.mean() for values, _ in parts])
    shifts = [_bias(values, r, str(config.loss), float(config.temperature)) for values, r in parts]
    return centres, centres + torch.tensor(shifts, dtype=torch.float64)


def _bias(f: Tensor, rewards: Tensor, loss: str, temperature: float) -> float:
    if loss == "mean":
        return float((rewards - f).mean())
    excess = (rewards - f) / temperature
    return temperature * (float(excess.logsumexp(0)) - math.log(len(excess)))


def _explained(f: Tensor, rewards: Tensor, loss: str, temperature: float) -> float:
    def deviance(values: Tensor) -> float:
        if loss == "mean":
            return float((rewards - values).square().mean())
        excess = (rewards - values) / temperature
        return float((excess.exp() - excess - 1.0).mean())

    constant = rewards.mean()
    if loss != "mean":
        constant = temperature * ((rewards / temperature).logsumexp(0) - math.log(len(rewards)))
    worst = deviance(constant.expand_as(rewards))
    return 1.0 - deviance(f) / worst if worst > 0.0 else math.nan


def _correlation(a: Tensor, b: Tensor) -> float:
    usable = a.isfinite()
    if int(usable.sum()) < 2 or a[usable].std() == 0.0 or b[usable].std() == 0.0:
        return math.nan
    return float(torch.corrcoef(torch.stack([a[usable], b[usable]]))[0, 1])
