r"""Annealed and composed pipelines with their weights.

The target at every noise level is :math:`\prod_i q_i^{a_i}` over the pipeline's own model (both branches of it where
the pipeline is guided) and other experts. In the frame y = x/alpha the move is the reference transition of
:mod:`feynkac.fkc.correctors` with noise multiplier 1, and the log-weight of the move that was made is

.. math:: \sum_i a_i' \log q_i'(y') - \sum_i a_i \log q_i(y) + \log L(y | y') - \log K(y' | y),

with the experts' log-densities tracked along the path by their own denoising kernels, log p_i(y' | y) - log N(y; y',
delta): what an expert says of y' belongs in it, so a move is weighed at the denoiser's next call. Nothing is evaluated
twice. The first move takes the pipeline's noise to the target's noisiest law; the last, noiseless one carries no
weight. Law and evidence are exact up to what the tracked densities miss at a finite number of steps, and exactly so for
Gaussian experts of the claimed moments.

With a ``log_density`` the tracked target is exchanged at the end for a law that is known, such as exp(-E/kT): the last
move then has noise too, and the weights are those of denoising kernels against noising kernels along the whole path,
exact for that law at any number of steps whatever the model's own error is. That error is paid for in their variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..fkc.correctors import Exponent
from ..fkc.correctors.densities import gaussian_log_q, tracked_change
from ..fkc.correctors.levels import Ends
from ..fkc.correctors.moves import Normal
from ..fkc.experts import Expert
from .composed_path import ComposedPath, Place, answer
from .context import FinalContext, StepContext
from .controls import Memory, Planned, Target, Weighed
from .errors import SteeringError
from .spaces import Everything, Space

__all__ = ["Annealed", "Composition", "Product"]

_NOISY = 5.0
"""Noise-to-signal ratio, in units of the data's deviation, above which the samples' law is the noise's."""


_ROUNDED = {torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Relative error of a guidance scale that is read off predictions of low precision; 1e-3 for others."""


@dataclass(frozen=True, eq=False)
class Composition:
    """The target q^a_0 times the product of q_i^a_i, q the pipeline's own law and q_i the experts'.

    Needs ``attach(transition="stochastic")`` (``kernel_eta`` plays no part but that it is not 0) and a model of
    posterior means. Where the pipeline is guided at scale g by a linear combination of two branches, q is their
    q_u^(1-g) q_c^g. ``run.log_evidence`` is the log of the integral of the target: at the last noisy level, or of
    exp(``log_density``) where that is given.

    Attributes:
        exponents: a_0 and one for each of ``experts``, numbers or functions of the progress (0 noise, 1 data).
        experts: other models in the same sample space, for instance of :func:`feynkac.steering.expert_of`.
        mean: of the clean latents, a guess; it shapes moves and lowers the variance of weights.
        std: of the clean latents, likewise: a number, or a function of the noise-to-signal ratio, see
            :func:`feynkac.steering.effective_std`.
        log_density: clean latents (rows, ...) -> (rows,), the log of the law that is wanted in the end in the place of
            what the experts say, up to a constant.
        space: coordinates in which densities are meant, such as :class:`feynkac.steering.MeanFree`.
        control: ``"score"`` moves along the experts' own velocities: another variance of the weights, the same law.
        name: for reports.
    """

    exponents: tuple[Exponent, ...] = (1.0,)
    experts: tuple[Expert, ...] = ()
    mean: float = 0.0
    std: float | Callable[[float], float] = 1.0
    log_density: Callable[[Tensor], Tensor] | None = None
    space: Space = Everything()  # noqa: RUF009 (it has no state)
    control: Literal["none", "score"] = "none"
    name: str = "composition"
    _path: ComposedPath = field(init=False, repr=False)
    records_branches = True
    plans_moves = True
    candidates = 1
    on = "latents"

    def __post_init__(self) -> None:
        if not isinstance(self.exponents, tuple):
            raise TypeError(f"exponents: got {type(self.exponents).__name__}, expected a tuple, the pipeline's first")
        for expert in self.experts:
            if not isinstance(expert, Expert):
                raise TypeError(f"experts: got {type(expert).__name__}, expected expert_of(pipe, ...) or fkc.Expert")
        if len(self.exponents) != 1 + len(self.experts):
            raise ValueError(
                f"exponents: got {len(self.exponents)}, expected one for the pipeline and one for each of the "
                f"{len(self.experts)} experts"
            )
        if self.control not in ("none", "score"):
            raise ValueError(f"control: got {self.control!r}, expected 'none' or 'score'")
        if not isinstance(self.space, Everything) and self.mean != 0.0:
            raise ValueError(f"mean: got {self.mean}, expected 0 with a space of its own")
        path = ComposedPath(self.exponents, self.experts, self.mean, self.std, self.control)
        path.target(1.0, 1, path.std_at(1.0))  # checks moments and exponents
        object.__setattr__(self, "_path", path)

    def begin(self, rows: int) -> Memory:
        """Nothing is known before the first call."""
        return {}

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """The weight of the move that was made, and the coming move.

        Raises:
            SteeringError: moves that are the scheduler's own, a trajectory that begins in the middle, guidance that
                changes or is not linear.
        """
        if context.n_moves < 2:
            raise SteeringError(f"{self.name}: got 1 step, expected at least 2: the last one carries no noise")
        last = context.index == context.n_moves - 1
        if not last and context.deviation == 0.0:
            raise SteeringError(f'{self.name}: its moves need transition="stochastic" with kernel_eta > 0')
        own, guidance = self._own(context, memory)
        here = Place.at(
            context.level, context.index, context.n_moves, context.start_deviation if context.index == 0 else 0.0
        )
        ends = self._asked(context, own, here, guidance)
        branches = len(own)
        if memory:
            gain, ends = self._gain(memory, ends, here, branches)
        else:
            self._refuse_middle(context, here)
            for index, level in enumerate(context.levels[1:-1], start=1):  # before any further work: PathCollapsed
                place = Place.at(level, index, context.n_moves)
                self._path.level(place, self._path.std_at(place.h**0.5), guidance, branches, _shape(ends))
            gain = torch.zeros(len(context.sample), dtype=torch.float64)
            ends = replace(ends, log_q=gaussian_log_q(ends.y, ends.level))
        there = Place.at(context.following, context.index + 1, context.n_moves)
        kernel = self._last(ends, context) if last else self._coming(ends, here, there, guidance, branches)
        planned = Planned(
            self.space.outer(there.alpha * kernel.mean.flatten(0, 1)).to(context.clean),
            there.alpha * float(kernel.variance) ** 0.5,
        )
        rows = len(context.sample) * len(self.experts)
        return Weighed(gain, _remembered(ends, here, guidance, kernel), planned=planned, denoiser_rows=rows)

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """Nothing is left to correct, unless the law wanted is another than what was weighed on the way."""
        if self.log_density is None:
            return Target(final.applied, torch.zeros_like(final.applied))
        x = self.space.inner(final.sample.double()).cpu()[None]
        y, h = memory["y"][None], memory["place"][0, 1]
        denoised = Normal(memory["mean"][None], memory["variance"][0]).log_density(x)
        noised = Normal(x, h).log_density(y)
        wanted = self.log_density(final.sample).detach().double().cpu()
        dead = int((~wanted.isfinite()).sum())
        wanted = torch.where(wanted.isfinite(), wanted, -torch.inf)
        correction = wanted + (noised - denoised)[0] - memory["log_target"]
        notes = (f"{dead} of {len(wanted)} final states have no finite log_density: weight zero",) if dead else ()
        return Target(final.applied + correction, wanted, notes=notes)

    # --- what the models say -----------------------------------------------------------------------------------------

    def _own(self, context: StepContext, memory: Memory) -> tuple[tuple[Tensor, ...], float]:
        """Clean predictions of the pipeline's own branches, and the guidance scale (1 for a single one)."""
        if context.branches is None:
            raise SteeringError(f"{self.name}: the denoiser's calls are not recorded")
        branches = context.branches()
        guided = len(branches.predictions) > 1
        if isinstance(branches.coefficients, Tensor):
            raise SteeringError(f"{self.name}: the guidance scale changes over the frames; keep it constant")
        scale = branches.guidance if guided else 1.0
        if memory:
            first = float(memory["guidance"][0])
            if abs(first - scale) > _ROUNDED.get(context.output.dtype, 1e-3) * abs(scale):
                raise SteeringError(
                    f"{self.name}: the guidance scale changes from {first:g} to {scale:g} at step {context.index}; "
                    "keep it constant over the run"
                )
            scale = first  # it is read off rounded numbers
        outputs = (branches.unconditional, branches.conditional) if guided else (context.output,)
        return tuple(context.clean_from(context.sample, output) for output in outputs), scale

    def _asked(self, context: StepContext, own: Sequence[Tensor], here: Place, guidance: float) -> Ends:
        """The particles in the frame y with all scores, at the level where a move begins."""
        x = context.sample.double() / here.alpha
        clean = [part.double() for part in own]
        clean += [answer(expert, x, here.h).double() for expert in self.experts]
        y = self.space.inner(x).cpu()  # weights and memories are the CPU's
        scores = torch.stack([(self.space.inner(part).cpu() - y) / here.h for part in clean], dim=1)
        populations = context.layout[0]
        grouped = y.reshape(populations, -1, *y.shape[1:])
        level = self._path.level(here, self._path.std_at(here.h**0.5), guidance, len(own), tuple(y.shape[1:]))
        return Ends(level, grouped, scores.reshape(*grouped.shape[:2], *scores.shape[1:]))

    def _refuse_middle(self, context: StepContext, here: Place) -> None:
        if context.skipped or here.h**0.5 < _NOISY * self._path.std_at(here.h**0.5):
            raise SteeringError(
                f"{self.name}: the trajectory begins at noise-to-signal ratio {here.h**0.5:.3g}, where it is not known "
                f"what the samples' law is; start from noise (a ratio of {_NOISY:g} standard deviations of the data)"
            )

    # --- weights and moves -------------------------------------------------------------------------------------------

    def _gain(self, memory: Memory, ends: Ends, here: Place, branches: int) -> tuple[Tensor, Ends]:
        """Log-weight (rows,) of the move that led here, and the particles with their densities."""
        there, guidance = Place(*memory["place"][0].tolist()), float(memory["guidance"][0])
        shape, std = _shape(ends), self._path.std_at(there.h**0.5)
        first, last = (self._path.level(place, std, guidance, branches, shape) for place in (there, here))
        grouped = {name: memory[name].reshape(*ends.y.shape[:2], *memory[name].shape[1:]) for name in _KEPT}
        before, after = Ends(first, **grouped), replace(ends, level=last)
        after = replace(after, log_q=grouped["log_q"] + tracked_change(before, after, 1.0))
        log_before = memory["log_target"].reshape(ends.y.shape[:2])
        if there.start > 0.0:
            noise = Normal(torch.zeros(()), torch.tensor(there.start, dtype=torch.float64))
            log_before = noise.log_density(before.y)
        made = Normal(memory["mean"].reshape(ends.y.shape), memory["variance"][0])
        return self._path.transition(first, last).kernel_weight(before, after, log_before, made).reshape(-1), after

    def _coming(self, ends: Ends, here: Place, there: Place, guidance: float, branches: int) -> Normal:
        """The kernel of the move that comes."""
        shape, std = _shape(ends), self._path.std_at(here.h**0.5)
        first, last = (self._path.level(place, std, guidance, branches, shape) for place in (here, there))
        return self._path.transition(first, last).forward(replace(ends, level=first))

    def _last(self, ends: Ends, context: StepContext) -> Normal:
        """The kernel of the last move: without noise, unless its density is asked for."""
        h, powers, following = ends.level.h, ends.level.powers, context.following
        if self.log_density is None:
            clean = ends.y + h * ends.score() / (sum(powers) if sum(powers) > 0.0 else 1.0)
            ratio = following.sigma / following.alpha / h**0.5
            return Normal(clean + ratio * (ends.y - clean), torch.zeros(()))
        if following.sigma > 0.0:
            raise SteeringError(
                f"log_density: the scheduler ends at sigma = {following.sigma:.3g}, expected 0 (set_alpha_to_one=True, "
                "final_sigmas_type='zero')"
            )
        data = self._path.std_at(h**0.5) ** 2
        share = 1.0 - sum(powers) * h / (data + h)
        return Normal(ends.y + h * ends.score(), torch.tensor(h * max(share, 0.1), dtype=torch.float64))


_KEPT = ("y", "scores", "log_q")


def _remembered(ends: Ends, here: Place, guidance: float, kernel: Normal) -> Memory:
    rows = ends.y.shape[0] * ends.y.shape[1]
    assert ends.log_q is not None
    place = torch.tensor([here.alpha, here.h, here.progress, here.start], dtype=torch.float64)
    memory = {name: getattr(ends, name).flatten(0, 1) for name in _KEPT}
    return memory | {
        "place": place.expand(rows, -1),
        "guidance": torch.full((rows,), guidance, dtype=torch.float64),
        "mean": kernel.mean.flatten(0, 1),
        "variance": kernel.variance.double().expand(rows),
        "log_target": ends.log_target().flatten(),
    }


class Annealed(Composition):
    """q^beta: the pipeline's law at 1/beta of its temperature.

    Args:
        exponent: beta, a number or a function of the progress.
        options: further attributes of :class:`Composition`.
    """

    def __init__(self, exponent: Exponent, **options: Any) -> None:
        super().__init__((exponent,), **{"name": "annealed", **options})


class Product(Composition):
    """The pipeline's law times those of other experts.

    Args:
        experts: models in the same sample space: other prompts or other pipelines, see
            :func:`feynkac.steering.expert_of`.
        exponents: of the pipeline and of each expert; all one if None.
        options: further attributes of :class:`Composition`.

    Raises:
        ValueError: no experts.
    """

    def __init__(self, *experts: Expert, exponents: Sequence[Exponent] | None = None, **options: Any) -> None:
        if not experts:
            raise ValueError("experts: got none, expected at least one beside the pipeline")
        if exponents is not None and not isinstance(exponents, Sequence):
            raise TypeError(f"exponents: got {type(exponents).__name__}, expected one for the pipeline and each expert")
        powers = (1.0,) * (1 + len(experts)) if exponents is None else tuple(exponents)
        super().__init__(powers, experts, **{"name": "product", **options})


def _shape(ends: Ends) -> tuple[int, ...]:
    return tuple(ends.y.shape[2:])
