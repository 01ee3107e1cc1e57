r"""Langevin correctors: Metropolis-adjusted moves of particles at one noise level, and a model that makes them.

At a level the proposal is :math:`y' = y + h\nabla\log\pi(y) + \sqrt{2h}\,\xi`, accepted with the ratio that
:class:`feynkac.fkc.kernels.MALA` writes down. What is exact:

    densities known    the ratio holds the experts' own log-densities; pi is left invariant exactly
    scores only        :math:`\log q_i(y') - \log q_i(y)` is the integral of the score along the straight segment, by
                       Simpson's rule with one evaluation at its middle: exact where log q_i is a polynomial of degree
                       four along the segment (every Gaussian), else wrong by a term in the fifth power of the segment.
                       The reversed segment gives minus the same number. Where the trapezoid over both ends differs
                       from it by more than 0.005 (times the exponent) the segment is too long for either, and the
                       proposal is rejected; that looks at both ends alike, so it is a restriction of the proposals and
                       no bias. Without it steps across a valley between two modes are accepted on a number that has
                       little to do with the density. The law left invariant is pi up to the rule's error, which falls
                       with the step size. A reward is always known, and exact.

**Inside the sequential sampler** (:class:`RefinedModel`) the moves are the first part of a step: after the particles
were weighted to a level and, where due, resampled, and before they leave it. Weighted particles stand for the
unnormalised law :math:`\gamma_{t-1}`: :math:`E\sum_i w_i f(y_i) = \gamma_{t-1}(f)`. A kernel M that leaves
:math:`\pi_{t-1}` invariant has :math:`\gamma_{t-1}(Mf) = \gamma_{t-1}(f)`, so the moved particles with the same weights
stand for the same law, evidence included; the coming increment is then that of the move that starts at the moved
particle. After a resampling it also parts the copies. What must not be done is to move a particle at its new level and
then to weigh the step by the kernels' ratio at the moved point: no kernel of the ratio drew that.

References:
    Del Moral, Doucet and Jasra (2006), JRSS B 68, 411, section 3.3. Roberts and Tweedie (1996), Bernoulli 2, 341.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..cloud import Cloud
from ..density import GeometricPath, LogDensity, Point, WithScore
from ..experts import Expert
from ..kernels import MALA
from ..model import FeynmanKacModel
from ..population import Population
from .levels import Ends
from .model import CorrectedModel, cloud_of, ends_of

__all__ = ["RefinedModel", "langevin_moves", "reference_step"]

_INCREMENT = "log_increment"
_TOLERANCE = 0.005
"""Between two rules for the change of a log-density: Simpson's own error is smaller still where they agree so far."""


def langevin_moves(
    model: CorrectedModel, generators: Sequence[Generator], level: int, cloud: Cloud, step_size: Tensor, moves: int = 1
) -> tuple[Cloud, Tensor, Tensor]:
    """Langevin steps with a Metropolis test at one level; one expert call a step, of twice the rows for scores only.

    Args:
        model: whose target at the level is left invariant.
        generators: P.
        level: index into ``model.levels``.
        cloud: particles there, as the model made them.
        step_size: h (P,) float64, in the squared unit of y.
        moves: how many.

    Returns:
        The particles, with everything that they carry; the accepted fraction of the moves (P, K) float64; the proposals
        whose density was NaN (P,) int64, which are rejected.
    """
    ends = ends_of(cloud, model.levels[level])
    accepted = torch.zeros(ends.y.shape[:2], dtype=torch.float64)
    invalid = torch.zeros(len(ends.y), dtype=torch.int64)
    if moves == 0:
        return cloud, accepted, invalid
    point, kernel = _point_of(ends), MALA()
    for _ in range(moves):
        done = kernel(generators, point, _path_at(model, ends, point), step_size)
        point = done.point
        accepted = accepted + done.accepted.double() / moves
        invalid = invalid + done.n_invalid
    ends = _ends_at(ends, point)
    if model.divergences or model.laplacian:
        ends = model.evaluated(generators, ends.y, ends.level, ends)
    return cloud_of(ends, cloud.shared), accepted, invalid


def reference_step(model: CorrectedModel, level: int, relative: float) -> float:
    """``relative`` times the reference's variance at the level times d^(-1/3), the scaling that keeps acceptance."""
    return relative * float(model.levels[level].reference.variance) * math.pow(math.prod(model.shape), -1 / 3)


class RefinedModel(FeynmanKacModel):
    """A corrected model whose steps begin with Langevin moves at the level that they leave.

    ``smc(RefinedModel(corrected_model(target), moves=2), particles=1000, seed=0)``. The evidence stays unbiased where
    the model's is (kernel weights of known densities). ``cloud.carried["accepted"]`` (P, K) is the accepted fraction.

    Args:
        model: what is refined.
        moves: Langevin steps a level, at least 1.
        step_size: times the reference's variance and d^(-1/3); or a function of the level's index that returns h in the
            squared unit of y. It must not look at the particles.

    Raises:
        ValueError: no moves, or a step size that is not positive.
    """

    def __init__(
        self, model: CorrectedModel, *, moves: int = 1, step_size: float | Callable[[int], float] = 0.1
    ) -> None:
        if moves < 1:
            raise ValueError(f"moves: got {moves}, expected at least 1")
        self.model, self.moves = model, moves
        self.step_sizes = [
            step_size(i) if callable(step_size) else reference_step(model, i, step_size)
            for i in range(len(model.levels))
        ]
        if not min(self.step_sizes) > 0.0:
            raise ValueError(f"step_size: got {min(self.step_sizes)} at some level, expected positive numbers")

    @property
    def n_steps(self) -> int:
        """Moves between levels."""
        return self.model.n_steps

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """That of the model."""
        cloud, log_weight = self.model.initial(generators, particles)
        nothing = torch.zeros_like(log_weight)
        return _with(cloud, **{_INCREMENT: nothing, "accepted": nothing}), log_weight

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """Langevin moves at the level before, then one level on; what that weighs is carried."""
        size = torch.full((cloud.n_populations,), self.step_sizes[step - 1], dtype=torch.float64)
        refined, accepted, _ = langevin_moves(self.model, generators, step - 1, cloud, size, self.moves)
        moved = self.model.move(generators, step, refined, population)
        increment = self.model.log_potential(step, refined, moved)
        return _with(moved, **{_INCREMENT: increment, "accepted": accepted})

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """That of the model's move from the refined particles."""
        return cloud.carried[_INCREMENT]

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """After the last level."""
        return self.model.finished(step, cloud)


# --- the level as a density ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Known:
    """An expert's log-density at noise variance h."""

    expert: Expert
    h: float
    size: int

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,)."""
        return self.expert.log_prob(x, self.h)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) and (B, *event)."""
        return self.expert.log_prob(x, self.h), _scores(self, x)


@dataclass(frozen=True, eq=False)
class _Integrated:
    """An expert's log-density on the segments from known points: there plus the integral of the score; infinite, so
    that the target vanishes, where that is not resolved."""

    expert: Expert
    h: float
    size: int
    power: float
    origin: Tensor
    log_q: Tensor
    scores: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,)."""
        return self.log_prob_and_score(x)[0]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) and (B, *event)."""
        last, middle = _scores(self, torch.cat([x, 0.5 * (x + self.origin)])).chunk(2)
        step, ends = (x - self.origin).double(), 0.5 * (self.scores.double() + last.double())
        change, other = ((step * slope).flatten(1).sum(dim=1) for slope in ((ends + 2.0 * middle.double()) / 3.0, ends))
        vague = abs(self.power) * (change - other).abs() > _TOLERANCE
        return torch.where(vague, -math.copysign(math.inf, self.power), self.log_q + change), last


def _scores(density: _Known | _Integrated, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([density.expert.score(part, density.h) for part in torch.split(x, density.size)]).to(x.dtype)


def _path_at(model: CorrectedModel, ends: Ends, point: Point) -> GeometricPath:
    """The target at a level; for scores only, along segments from ``point``."""
    level, target = ends.level, model.target
    flat = point.x.flatten(0, 1)
    size = model.chunk_size or 2 * len(flat)
    components: list[LogDensity] = []
    for i, expert in enumerate(target.experts):
        if model.known and model.densities:
            components.append(_Known(expert, level.h, size))
            continue
        assert point.score is not None  # made by _point_of
        log_q, scores = point.log_prob[:, :, i].flatten(), point.score[:, :, i].flatten(0, 1)
        components.append(_Integrated(expert, level.h, size, level.powers[i], flat, log_q, scores))
    powers = list(level.powers)
    if target.tilt is not None:
        components.append(WithScore(target.tilt.value_and_gradient))
        powers.append(level.reward_scale)
    return GeometricPath(tuple(components), torch.tensor(powers, dtype=torch.float64).expand(len(point.x), -1))


def _point_of(ends: Ends) -> Point:
    """One column for each expert and one for the reward; densities that nobody needs count from here."""
    log_q = ends.log_q if ends.log_q is not None else torch.zeros(ends.scores.shape[:3], dtype=torch.float64)
    if ends.reward is None or ends.reward_gradient is None:
        return Point(ends.y, log_q, ends.scores)
    scores = torch.cat([ends.scores, ends.reward_gradient[:, :, None]], dim=2)
    return Point(ends.y, torch.cat([log_q, ends.reward[:, :, None]], dim=2), scores)


def _ends_at(ends: Ends, point: Point) -> Ends:
    """``ends`` with the particles of ``point``."""
    n = ends.scores.shape[2]
    assert point.score is not None  # made by _point_of
    moved = replace(ends, y=point.x, scores=point.score[:, :, :n])
    if ends.log_q is not None:
        moved = replace(moved, log_q=point.log_prob[:, :, :n])
    if ends.reward is not None:
        moved = replace(moved, reward=point.log_prob[:, :, n], reward_gradient=point.score[:, :, n])
    return moved


def _with(cloud: Cloud, **values: Tensor) -> Cloud:
    return replace(cloud, carried={**cloud.carried, **values})
