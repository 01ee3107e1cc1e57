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

from ...fkc import Population, Streams
from ...fkc.errors import PopulationCollapsed
from ..context import StepContext
from ..controls import Control, Memory
from ..errors import SteeringError
from ..layout import Layout
from ..run import Run, StepRecord
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
    work = _BlockController(
        controls, Layout(populations, particles, 1, 1), seed, ess_threshold, resampler, input_ids.shape[1], gen_length
    )
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

    def __init__(
        self,
        controls: Sequence[Control],
        layout: Layout,
        seed: int,
        ess_threshold: float,
        resampler: str,
        prompt_length: int,
        gen_length: int,
    ) -> None:
        self.controls, self.layout = controls, layout
        self.ess_threshold, self.resampler = ess_threshold, resampler
        self.generated = slice(prompt_length, prompt_length + gen_length)
        self.streams = Streams.from_seed(seed, layout.populations)
        self.population = Population.uniform(layout.populations, layout.particles)
        self.memory: list[Memory] = [control.begin(layout.rows) for control in controls]
        self.applied = torch.zeros(len(controls), layout.rows, dtype=torch.float64)
        self.run = Run(population=self.population)

    def on_step_end(self, pipe: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The pipeline's callback: ``block_x`` (rows, n) with its rows exchanged where a population is resampled."""
        tokens = tensors["block_x"]
        context = self._context(pipe, step, timestep, tensors)
        self.run.calls.denoiser += len(tokens)
        potential, scored = self._weigh(context)
        ancestors = None
        if scored:
            increment = potential.reshape(self.layout.populations, self.layout.particles)
            weighed = self.population.reweighted(increment, on_collapse="keep")
            self.population, ancestors = weighed.resampled(
                self.streams.resampling, scheme=self.resampler, threshold=self.ess_threshold
            )
            self.run.records.append(StepRecord(step, weighed.ess, weighed.log_evidence, ancestors, increment))
        if ancestors is None:
            return {}
        offsets = self.layout.particles * torch.arange(self.layout.populations)[:, None]
        rows = (ancestors + offsets).flatten()
        self.memory = [{name: value[rows] for name, value in memory.items()} for memory in self.memory]
        self.applied = self.applied[:, rows]
        return {"block_x": tokens.index_select(0, rows.to(tokens.device))}

    def _context(self, pipe: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> StepContext:
        tokens, drawn = tensors["block_x"], tensors["sampled_tokens"]
        masked = tensors["active_block"] & ~tensors["transfer_index"]
        guess = tokens.clone()
        guess[:, -drawn.shape[1] :] = torch.where(masked, drawn, tokens[:, -drawn.shape[1] :])
        hidden = float(masked.double().mean())
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
            layout=(self.layout.populations, self.layout.particles, 1),
            decode=lambda clean: clean,
        )

    def _weigh(self, context: StepContext) -> tuple[Tensor, bool]:
        potential, scored = torch.zeros(self.layout.rows, dtype=torch.float64), False
        for i, control in enumerate(self.controls):
            weighed = control.weigh(context, self.memory[i])
            if weighed is not None:
                scored = True
                self.memory[i] = weighed.memory
                self.applied[i] += weighed.log_potential
                potential = potential + weighed.log_potential
        return potential, scored

    def finish(self, sequences: Tensor) -> Run:
        """The last correction, so that the product of all potentials is exp(log_target)."""
        shape = (self.layout.populations, self.layout.particles)
        total = torch.zeros(shape, dtype=torch.float64)
        for i, control in enumerate(self.controls):
            target = control.log_target(sequences, lambda clean: clean)
            correction = torch.where(target > -torch.inf, target - self.applied[i], -torch.inf)
            self.population = self.population.reweighted(correction.reshape(shape), on_collapse="keep")
            total = total + target.reshape(shape)
        self.run.population, self.run.rewards, self.run._samples = self.population, total, sequences
        if bool(self.population.collapsed.any()):
            dead = self.population.collapsed.nonzero().flatten().tolist()
            raise PopulationCollapsed(dead, len(self.run.records), shape[1], self.run)
        return self.run
