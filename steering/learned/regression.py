r"""Regression of soft values, and the whole way from a pipeline to a value.

With t = r(x0)/alpha and g = f(x_t)/alpha the two losses are

    exp    exp(t - g) + g       minimised by g = log E[exp(t) | x_t]: the soft value alpha log E[exp(r/alpha) | x_t]
    mean   (r - f)^2            minimised by f = E[r | x_t]: the soft value of an infinite temperature

"exp" is the Itakura-Saito divergence of exp(t) from exp(g) up to a constant, a Bregman divergence, hence minimised by
the conditional mean of exp(t) (Banerjee et al. 2005); unlike the squared error of exp(t) it does not change when a
constant is added to r, and no weight is larger than the spread of t around g asks for. "mean" is what the published
code of SVDD (Li et al. 2024) fits.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ...fkc.streams import split_seed
from ..controls import When
from ..moves import Transition
from ..rewards import Reward
from ..rewards.calls import reward_name
from ..tilt import Space
from .collecting import Call, collect_rollouts
from .rollouts import Rollouts
from .training import FitProgress, FitRun, Fitting
from .value import LearnedValue

__all__ = ["FitProgress", "Fitting", "Loss", "fit_network", "fit_value", "regression_loss"]

Loss = Literal["exp", "mean"]

_STEEPEST = 30.0
"""Gradients of "exp" see t - g up to here: exp(30) in one sample of a batch is clipped by the norm in any case."""


def regression_loss(values: Tensor, rewards: Tensor, *, loss: Loss, temperature: float, scale: float = 1.0) -> Tensor:
    """Mean loss, a number, of ``values`` (B,) for ``rewards`` (B,), in units in which it is of order one.

    Args:
        values: f, in units of the reward.
        rewards: r; minus infinity is allowed for "exp".
        loss: "exp" or "mean".
        temperature: alpha, for "exp".
        scale: of the rewards, for "mean".
    """
    if loss == "mean":
        return ((values - rewards) / scale).square().mean()
    g, t = values / temperature, rewards / temperature
    excess = (t - g).detach().clamp(max=_STEEPEST)
    slope = 1.0 - excess.exp()
    linear = (slope * g).mean()
    return linear + (excess.exp() + g - slope * g).mean().detach()


def fit_network(
    rollouts: Rollouts,
    *,
    temperature: float,
    seed: int,
    loss: Loss = "exp",
    fitting: Fitting | None = None,
    reward: str = "",
    tokens: int | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    report: Callable[[FitProgress], None] | None = None,
    progress: bool = True,
) -> tuple[LearnedValue, list[FitProgress]]:
    """A value fitted to ``rollouts``: the averaged parameters that were best on held-out trajectories.

    Deterministic given ``seed``; a fit that was interrupted goes on from ``checkpoint`` and ends with the same bits.

    Args:
        rollouts: of the unsteered sampler.
        temperature: alpha, in units of the reward.
        seed: of the network's start and of the batches.
        loss: "exp" for the soft value, "mean" for E[r | x_t].
        fitting: size of the network and length of the training.
        reward: its name, for the record.
        tokens: symbols, the mask included, where states are tokens; one more than the largest seen if None.
        device: on which to train.
        checkpoint: folder in which the whole state is kept.
        report: called with each evaluation.
        progress: show a bar.

    Raises:
        ValueError: a temperature that is not positive, an unknown loss, rewards that cannot be regressed, or
            ``checkpoint`` holds another fit.
        FloatingPointError: training diverged.
    """
    from .network import ValueNetwork

    settings = fitting or Fitting()
    _check(rollouts, loss, temperature)
    training, held_out = rollouts.split(max(1, round(settings.held_out * len(rollouts))))
    offset, scale = _moments(training.rewards, loss, temperature)
    if not rollouts.states.is_floating_point():
        tokens = tokens or int(rollouts.states.max()) + 1
    network = ValueNetwork.drawn(
        torch.Generator().manual_seed(split_seed(seed, 0)),
        shape=list(rollouts.shape),
        tokens=tokens,
        denoised=rollouts.clean is not None,
        width=settings.width,
        blocks=settings.blocks,
        offset=offset,
        scale=scale,
        temperature=temperature,
        loss=loss,
        reward=reward,
    )

    def objective(values: Tensor, rewards: Tensor) -> Tensor:
        return regression_loss(values, rewards, loss=loss, temperature=temperature, scale=scale)

    plan = {"seed": seed, "config": _plain(network.config), "fitting": asdict(settings), "rollouts": len(rollouts)}
    run = FitRun(network.to(device), training, held_out, objective, settings, split_seed(seed, 0, 1))
    if checkpoint is not None:
        run.restore(checkpoint, plan)
    bar = tqdm(total=settings.steps, initial=run.step, desc="value", disable=not progress)
    with bar:
        while run.step < settings.steps:
            run.advance()
            bar.update()
            if run.step % settings.evaluate_every == 0 or run.step == settings.steps:
                run.evaluate()
                bar.set_postfix(held_out=f"{run.history[-1].held_out:.4f}")
                if checkpoint is not None:
                    run.save(checkpoint, plan)
                if report is not None:
                    report(run.history[-1])
    run.finish()
    return LearnedValue(network), run.history


def fit_value(
    pipe: Any,
    reward: Reward,
    *,
    temperature: float,
    rollouts: int,
    seed: int,
    call: Call,
    loss: Loss = "exp",
    fitting: Fitting | None = None,
    batch_size: int = 64,
    on: Space = "images",
    when: When = None,
    denoised: bool = True,
    tokens: int | None = None,
    transition: Transition = "native",
    kernel_eta: float = 1.0,
    chunk_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> tuple[LearnedValue, list[FitProgress]]:
    """Rollouts of ``pipe``, and the soft value of ``reward`` fitted to them.

    The value belongs to this sampler: its steps, its noise, its prompts, of which the network knows nothing. Elsewhere
    it is an approximation. That costs effective samples, all of them if it misleads badly, and never exactness.

    Args:
        pipe: a diffusers pipeline with a known scheduler.
        reward: samples -> one number each.
        temperature: alpha; for a steering of scale lambda it is 1/lambda.
        rollouts: trajectories of each prompt.
        seed: of everything.
        call: arguments of the pipeline; see :func:`collect_rollouts`.
        loss: "exp" for the soft value, "mean" for E[r | x_t].
        fitting: size of the network and length of the training.
        batch_size: trajectories a call of the pipeline.
        on: what the reward is given.
        when: the moves recorded, for large states.
        denoised: the network sees x0-hat beside x_t (continuous states).
        tokens: symbols, the mask included, where states are tokens.
        transition, kernel_eta, chunk_size: as for :func:`feynkac.steering.attach`, and as it will be steered.
        device: on which to train.
        progress: show bars.

    Returns:
        The value, and one evaluation after the other.

    Raises:
        ValueError, SteeringError, FloatingPointError: as :func:`collect_rollouts` and :func:`fit_network`.
    """
    found = collect_rollouts(
        pipe,
        reward,
        rollouts,
        seed=split_seed(seed, 0),
        call=call,
        batch_size=batch_size,
        on=on,
        when=when,
        clean=denoised,
        transition=transition,
        kernel_eta=kernel_eta,
        chunk_size=chunk_size,
        progress=progress,
    )
    return fit_network(
        found,
        temperature=temperature,
        seed=split_seed(seed, 1),
        loss=loss,
        fitting=fitting,
        reward=reward_name(reward),
        tokens=tokens,
        device=device,
        progress=progress,
    )


def _check(rollouts: Rollouts, loss: str, temperature: float) -> None:
    if loss not in ("exp", "mean"):
        raise ValueError(f"loss: got {loss!r}, expected 'exp' or 'mean'")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected a positive number")
    finite = rollouts.rewards.isfinite()
    if loss == "mean" and not bool(finite.all()):
        raise ValueError(f"rewards: {int((~finite).sum())} are minus infinity, whose mean is too; use loss='exp'")
    if not bool(finite.any()):
        raise ValueError("rewards: none is finite")


def _moments(rewards: Tensor, loss: Loss, temperature: float) -> tuple[float, float]:
    """Offset and scale of the network: the best constant, and the rewards' standard deviation (1 if there is none)."""
    finite = rewards[rewards.isfinite()]
    scale = float(finite.std(correction=0)) if len(finite) else 0.0
    if loss == "mean":
        offset = float(finite.mean())
    else:
        t = rewards / temperature
        offset = temperature * float(t.logsumexp(0) - torch.log(torch.tensor(float(len(t)), dtype=t.dtype)))
    return offset, scale if scale > 0.0 else 1.0


def _plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}
