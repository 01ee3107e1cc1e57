"""Steering of block-wise text diffusion as diffusers ships it: ``LLaDA2Pipeline`` with its
``BlockRefinementScheduler``.

There the scheduler is not the place to steer: ``step`` sees one block, the pipeline keeps the earlier ones to itself
and merges by an index of committed positions, so that rows exchanged inside ``step`` would be paired with other rows'
contexts. The pipeline's callback sees and may replace whole rows, so particles are weighed and resampled there, after
each move: the likeliest clean sequence of a state is the tokens that the move itself drew for the positions still
masked.

Two options couple the rows, or keep flags that a callback cannot exchange: stopping early at an end token, and
editing of committed tokens, which goes on for all rows while any row changes. Both are switched off; without them
every row is a Markov chain of its own and the weights are exact for it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...fkc import Streams
from ...fkc.errors import PopulationCollapsed
from ..context import StepContext
from ..controls import Control
from ..errors import SteeringError
from ..layout import Layout
from ..particles import Particles
from ..run import Run
from ..schedulers.levels import Level

__all__ = ["steer_blocks"]

_OURS = (
    "eos_early_stop",
    "editing_threshold",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "output_type",
)


def steer_blocks(
    pipe: Any,
    *controls: Control,
    input_ids: Tensor,
    particles: int,
    seed: int,
    gen_length: int,
    ess_threshold: float = 0.5,
    resampler: str = "systematic",
    **call: Any,
) -> tuple[Tensor, Run]:
    """Generate with a ``LLaDA2Pipeline``, tilted by the controls.

    Args:
        pipe: the pipeline.
        controls: on tokens, one candidate each. Their rewards see (rows, n) int64 generated tokens: on the way those
            up to the end of the block at work, in the end all ``gen_length``.
        input_ids: (P, L) int64 prompts, one for each population.
        particles: K.
        seed: of resampling.
        gen_length: tokens to generate.
        ess_threshold, resampler: as for :func:`feynkac.steering.attach`.
        call: further arguments of the pipeline; ``temperature`` above 0 among them, and ``generator`` for its noise.

    Returns:
        Sequences (P * K, gen_length) int64, a population's side by side, and the run with their log-weights.

    Raises:
        SteeringError: an argument that would couple rows or is ours to set; no temperature; controls with candidates.
        PopulationCollapsed: every sequence of a prompt is impossible.
    """
    _refuse(controls, call, input_ids)
    populations = len(input_ids)
    cloud = Particles(
        controls,
        Layout(populations, particles, 1),
        Streams.from_seed(seed, populations),
        ess_threshold=ess_threshold,
        resampler=resampler,
        run=Run(),
    )
    work = _BlockController(cloud, input_ids.shape[1], gen_length)
    out = pipe(
        input_ids=input_ids.repeat_interleave(particles, dim=0),
        gen_length=gen_length,
        eos_early_stop=False,
        editing_threshold=None,
        output_type="seq",
        callback_on_step_end=work.on_step_end,
        callback_on_step_end_tensor_inputs=["block_x", "sampled_tokens", "active_block", "transfer_index"],
        return_dict=False,
        **call,
    )
    return out[0], work.finish(out[0])


def _refuse(controls: Sequence[Control], call: dict[str, Any], input_ids: Tensor) -> None:
    taken = [name for name in _OURS if name in call]
    if taken:
        raise SteeringError(f"{', '.join(taken)}: set by steer_blocks, because particles must not be coupled")
    if float(call.get("temperature") or 0.0) <= 0.0 or call.get("sampling_method") == "greedy":
        raise SteeringError(
            f"temperature: got {call.get('temperature')}, expected a number above 0 and no greedy sampling: without "
            "noise the copies of a particle stay copies"
        )
    if any(control.candidates > 1 for control in controls):
        raise SteeringError(
            "candidates: this pipeline is steered by weights alone, expected controls with one candidate"
        )
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids: got shape {tuple(input_ids.shape)}, expected (P, L)")


class _BlockController:
    """Weighs and resamples at the end of every refinement step."""

    def __init__(self, particles: Particles, prompt_length: int, gen_length: int) -> None:
        self.particles = particles
        self.generated = slice(prompt_length, prompt_length + gen_length)

    def on_step_end(self, pipe: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The pipeline's callback: ``block_x`` (rows, n) with its rows exchanged where a population is resampled."""
        tokens = tensors["block_x"]
        self.particles.run.calls.denoiser += len(tokens)
        rows = self.particles.weigh(self._context(pipe, step, timestep, tensors))
        return {} if rows is None else {"block_x": tokens.index_select(0, rows.to(tokens.device))}

    def _context(self, pipe: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> StepContext:
        tokens, drawn = tensors["block_x"], tensors["sampled_tokens"]
        masked = tensors["active_block"] & ~tensors["transfer_index"]
        guess = tokens.clone()
        guess[:, -drawn.shape[1] :] = torch.where(masked, drawn, tokens[:, -drawn.shape[1] :])
        hidden = float(masked.double().mean())
        layout = self.particles.layout
        return StepContext(
            index=step,
            n_moves=pipe.num_timesteps,
            timestep=timestep,
            level=Level(1.0 - hidden, hidden),
            following=Level(1.0 - hidden, hidden),
            sample=tokens[:, self.generated],
            output=guess[:, self.generated],
            prediction="sample",
            exploding=False,
            layout=(layout.populations, layout.particles, 1),
            decode=_as_they_are,
            log_weights=self.particles.population.log_weights,
            read_clean=lambda sample, output: output,
        )

    def finish(self, sequences: Tensor) -> Run:
        """The last correction, so that the product of all potentials is exp(log-tilt)."""
        run = self.particles.run
        self.particles.conclude(sequences, _as_they_are, "weighted", None)
        run.finish(self.particles.population, sequences)
        if bool(run.population is not None and run.population.collapsed.any()):
            dead = self.particles.population.collapsed.nonzero().flatten().tolist()
            raise PopulationCollapsed(dead, len(run.records), self.particles.layout.particles, run)
        return run


def _as_they_are(tokens: Tensor) -> Tensor:
    return tokens
