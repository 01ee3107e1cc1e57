"""Batch after batch of a pipeline, each repelled from where those before it have been, and all of them undone.

batches = repel(pipe, Repulsion(bias, features), batches=8, frozen_batches=4, particles=64, seed=0, ...)
batches.outputs, batches.values                      # what the pipeline returned, batch by batch; features
batches.pooled().mean(f)                             # of the law without the bias, all samples used
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..fkc.bias import RepulsionBias
from ..fkc.bias.rounds import Drawn, PooledRounds, Pooling, Round, bias_rounds, occupied_cells, pool_rounds
from ..fkc.streams import split_seed
from .controls import Control
from .repulsion import Repulsion
from .run import Run
from .steer import steer

__all__ = ["Batch", "RepelledBatches", "repel", "repelled_batches"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One call of the pipeline.

    Attributes:
        repulsion: with the bias that acted.
        output: what the pipeline returned.
        run: weights of the biased law.
        round: the same for :mod:`feynkac.fkc.bias.rounds`.
    """

    repulsion: Repulsion
    output: Any
    run: Run
    round: Round[Any]

    @property
    def index(self) -> int:
        """0 for the first."""
        return self.round.index

    @property
    def bias(self) -> RepulsionBias:
        """That acted."""
        return self.round.bias

    @property
    def following(self) -> RepulsionBias:
        """The bias after the batch."""
        return self.round.following

    @property
    def values(self) -> Tensor:
        """Features (P, K, d) of the outputs."""
        return self.repulsion.values(self.run)

    @property
    def log_weights(self) -> Tensor:
        """(P, K) of the law without the bias, see :meth:`Repulsion.reweight`."""
        return self.repulsion.reweight(self.run)

    @property
    def log_evidence(self) -> Tensor:
        """(P,) log of an unbiased estimate of the evidence without the bias: of 1 where nothing else steers."""
        shift = self.log_weights.logsumexp(dim=1)
        return shift - torch.log(torch.tensor(float(self.log_weights.shape[1]), dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class RepelledBatches:
    """All batches.

    Attributes:
        batches: in order, filling ones first.
    """

    batches: tuple[Batch, ...]

    @property
    def outputs(self) -> list[Any]:
        """What the pipeline returned in each batch."""
        return [batch.output for batch in self.batches]

    @property
    def bias(self) -> RepulsionBias:
        """The last one."""
        return self.batches[-1].following

    @property
    def values(self) -> Tensor:
        """Features (batches, P, K, d)."""
        return torch.stack([batch.values for batch in self.batches])

    @property
    def log_weights(self) -> Tensor:
        """(batches, P, K) of the law without the bias, each batch by the bias that acted on it."""
        return torch.stack([batch.log_weights for batch in self.batches])

    def pooled(self, how: Pooling = "mixture") -> PooledRounds:
        """All samples as one weighted sample of the law without the bias, (batches P K,) in the order of ``values``."""
        return pool_rounds([batch.round for batch in self.batches], how)

    def occupied(self, widths: Sequence[float] | None = None) -> list[int]:
        """Boxes of feature space that hold a sample, after each batch.

        Args:
            widths: of a box along each feature; the bias's kernel widths if None.
        """
        cells = self.bias.sigmas if widths is None else widths
        every = self.values.flatten(1, 2)
        return [occupied_cells(every[: i + 1].flatten(0, 1), cells) for i in range(len(every))]


def repelled_batches(
    pipe: Any,
    repulsion: Repulsion,
    *controls: Control,
    batches: int,
    frozen_batches: int = 0,
    particles: int,
    seed: int,
    first: int = 0,
    **call: Any,
) -> Iterator[Batch]:
    """The batches of :func:`repel`, one at a time.

    A run that was stopped goes on with ``first``, the number of the first batch that is not there yet, and the bias
    that the one before it left (``Batch.following``): its batches have the bits of a run never stopped.

    Args:
        pipe: a diffusers pipeline.
        repulsion: with the bias that acts on the first batch made here.
        controls: others; their tilts multiply.
        batches: that deposit.
        frozen_batches: more batches, under the last bias.
        particles: K, samples of each prompt and batch.
        seed: of everything; each batch has streams of its own.
        first: see above.
        call: arguments of the pipeline and options of :func:`feynkac.steering.attach`, as for
            :func:`feynkac.steering.steer`. Several prompts are independent populations of one law, that of a prompt
            picked at random, and share the bias.

    Raises:
        SteeringError, PopulationCollapsed: as for :func:`feynkac.steering.steer`.
    """
    options = {"particles": particles, **call}
    draw = partial(_draw, pipe, repulsion, controls, seed, options)
    for one in bias_rounds(draw, repulsion.bias, filling=batches, frozen=frozen_batches, first=first):
        output, run, acting = one.drawn.payload
        yield Batch(acting, output, run, one)


def repel(
    pipe: Any,
    repulsion: Repulsion,
    *controls: Control,
    batches: int,
    frozen_batches: int = 0,
    particles: int,
    seed: int,
    **call: Any,
) -> RepelledBatches:
    """Call a pipeline batch after batch, each repelled from the features of those before it.

    Args:
        pipe: a diffusers pipeline.
        repulsion: with the bias to begin with, usually empty.
        controls: others, such as :class:`feynkac.steering.FKSteering`; the law that weights are undone to is theirs.
        batches: that deposit.
        frozen_batches: more batches, under the last bias.
        particles: K, samples of each prompt and batch.
        seed: of everything.
        call: as for :func:`repelled_batches`.

    Raises:
        SteeringError, PopulationCollapsed: as for :func:`feynkac.steering.steer`.
    """
    made = repelled_batches(
        pipe,
        repulsion,
        *controls,
        batches=batches,
        frozen_batches=frozen_batches,
        particles=particles,
        seed=seed,
        **call,
    )
    return RepelledBatches(tuple(made))


def _draw(
    pipe: Any,
    repulsion: Repulsion,
    controls: Sequence[Control],
    seed: int,
    options: dict[str, Any],
    bias: RepulsionBias,
    index: int,
) -> Drawn[tuple[Any, Run, Repulsion]]:
    acting = repulsion.with_bias(bias)
    output, run = steer(pipe, acting, *controls, seed=split_seed(seed, index), **options)
    drawn = acting.drawn(run)
    return Drawn(drawn.values, drawn.log_weights, (output, run, acting), drawn.groups)
