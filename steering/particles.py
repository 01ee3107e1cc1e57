"""The rows of a batch as weighted particles: what they remember, which candidate is kept, who is resampled.

Everything that weighing, choosing and resampling need, and nothing of pipelines or schedulers. The batch has P x K x M
rows throughout; of a particle's M slots the first ``live`` hold children to be judged, the others copies.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..fkc import Population, Streams
from ..fkc.streams import uniform
from .context import Decode, FinalContext, StepContext
from .controls import Control, Memory, Planned, Target, never_due
from .errors import SteeringError
from .layout import Layout
from .run import Run, StepRecord

__all__ = ["Final", "Particles"]

Final = Literal["weighted", "resampled", "best"]


class Particles:
    """Weights, memories and family tree of one run.

    Args:
        controls: what is steered to.
        layout: of the batch.
        streams: of the populations.
        ess_threshold: resample below this fraction of K.
        resampler: scheme of :func:`feynkac.fkc.resample`.
        run: the record that is kept.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        layout: Layout,
        streams: Streams,
        *,
        ess_threshold: float,
        resampler: str,
        run: Run,
    ) -> None:
        self.controls, self.layout, self.streams, self.run = tuple(controls), layout, streams, run
        self.ess_threshold, self.resampler = ess_threshold, resampler
        self.names = _distinct([control.name for control in self.controls])
        self.greedy = any(getattr(control, "greedy", False) for control in self.controls)
        self.judged = [False] * len(self.controls)
        self.population = Population.uniform(layout.populations, layout.particles)
        self.live = replace(layout, candidates=self.count_at(0.0), tiles=1)
        rows = self.live.rows
        self.memory: list[Memory] = [control.begin(rows) for control in self.controls]
        self.applied = [torch.zeros(rows, dtype=torch.float64) for _ in self.controls]
        self._judged = self._reward_calls()
        self._first_child = torch.zeros((layout.populations, layout.particles), dtype=torch.int64)
        self.log_ratio: Tensor | None = None
        self.gradient: Tensor | None = None
        self.planned: Planned | None = None
        run.begin(self.population)

    def count_at(self, fraction: float) -> int:
        """Live candidates of the children drawn at this fraction of the trajectory."""
        counts = [c.count_at(fraction) if hasattr(c, "count_at") else c.candidates for c in self.controls]
        return max([*counts, 1])

    @property
    def live_rows(self) -> Tensor | None:
        """Rows of the batch that are live (n,), or None if all are."""
        return None if self.live.candidates == self.layout.candidates else self.layout.first(self.live.candidates)

    def add_ratio(self, log_ratio: Tensor) -> None:
        """A move was made from another proposal: its log p/q (batch rows,) counts at the next weighing."""
        live = self.live_rows
        mine = log_ratio if live is None else log_ratio[live]
        self.log_ratio = mine if self.log_ratio is None else self.log_ratio + mine

    def skip(self, index: int) -> None:
        """A move that nobody judges."""
        self.run.records.append(StepRecord(index, self.population, None, None))

    # --- on the way --------------------------------------------------------------------------------------------------

    def weigh(self, context: StepContext) -> Tensor | None:
        """Ask every control about the live rows, choose, resample.

        Returns:
            Rows of the batch (P x K x M,) that go on, or None if all stay where they are.
        """
        potential: Tensor | None = None
        rewards: dict[str, Tensor] = {}
        self.gradient = self.planned = None
        for i, control in enumerate(self.controls):
            weighed = control.weigh(context, self.memory[i])
            if weighed is None:
                continue
            self._refuse_shape(i, weighed.log_potential)
            self.judged[i] = True
            self.run.calls.denoiser += weighed.denoiser_rows
            self.memory[i] = weighed.memory
            self.applied[i] = self.applied[i] + weighed.log_potential
            potential = weighed.log_potential if potential is None else potential + weighed.log_potential
            if weighed.reward is not None:
                rewards[self.names[i]] = weighed.reward
            if weighed.gradient is not None:
                self.gradient = weighed.gradient if self.gradient is None else self.gradient + weighed.gradient
            if weighed.planned is not None:
                if self.planned is not None:
                    raise SteeringError("controls: two of them make the move (Annealed, Product, ...); use one")
                self.planned = weighed.planned
        self._count_rewards()
        if potential is None:
            self.skip(context.index)
            return None
        return self._select(potential, rewards, context)

    def _select(self, potential: Tensor, rewards: dict[str, Tensor], context: StepContext) -> Tensor | None:
        child, increment = self._choose(potential)
        weighed = self.population.reweighted(increment, on_collapse="keep")
        self.population, ancestors = weighed.resampled(
            self.streams.resampling, scheme=self.resampler, threshold=self.ess_threshold
        )
        kept = {name: self.live.chosen(values, child) for name, values in rewards.items()}
        self.run.records.append(StepRecord(context.index, weighed, ancestors, increment, kept))
        self.run.population = self.population
        self.log_ratio = None
        if ancestors is None and self.layout.candidates == 1:
            return None
        return self._permute(ancestors, child, self.count_at(context.fraction))

    def _permute(self, ancestors: Tensor | None, child: Tensor, live: int) -> Tensor:
        """Give every particle its ancestor's chosen child, in all slots; the rows of the batch that go on."""
        if ancestors is None:
            ancestors = self._identity()
        before = self.live
        if live != before.candidates:
            self.live = replace(before, candidates=live)
        rows = before.rows_of(ancestors, child, live)
        self.memory = [{name: value.index_select(0, rows) for name, value in memory.items()} for memory in self.memory]
        self.applied = [value.index_select(0, rows) for value in self.applied]
        batch = rows if self.layout.candidates == 1 else self.layout.rows_of(ancestors, child, self.layout.candidates)
        everybody = before.rows_of(ancestors, child, self.layout.candidates)
        if self.gradient is not None:
            self.gradient = self.gradient[everybody]
        if self.planned is not None:
            self.planned = replace(self.planned, mean=self.planned.mean[everybody])
        return batch

    def _choose(self, potential: Tensor) -> tuple[Tensor, Tensor]:
        """One live candidate a particle in proportion to exp(potential), and the particle's increment, (P, K) each."""
        if self.greedy:
            return self._best_children(potential)
        if self.log_ratio is not None:
            potential = torch.where(potential > -torch.inf, potential + self.log_ratio, -torch.inf)
        if self.live.candidates == 1:
            return self._first_child, potential.reshape(self.layout.populations, self.layout.particles)
        grouped = self.live.grouped(potential)
        total = grouped.logsumexp(dim=2)
        increment = total - torch.log(torch.tensor(float(self.live.candidates), dtype=torch.float64))
        shares = torch.nan_to_num((grouped - total[:, :, None]).exp()).cumsum(dim=2)
        draw = uniform(self.streams.resampling, (self.layout.particles,))[:, :, None] * shares[:, :, -1:]
        return (shares <= draw).sum(dim=2).clamp(max=self.live.candidates - 1), increment

    def _best_children(self, potential: Tensor) -> tuple[Tensor, Tensor]:
        """Temperature 0: the best candidate of each particle, no weights; a particle dies if all its candidates do."""
        self.run.note("temperature 0 keeps the best candidate: outputs are not weighted draws of a target", biased=True)
        best = self.live.grouped(potential).max(dim=2)
        return best.indices, torch.where(best.values > -torch.inf, 0.0, -torch.inf)

    def _refuse_shape(self, control: int, log_potential: Tensor) -> None:
        if log_potential.shape != (self.live.rows,):
            raise ValueError(
                f"control {self.names[control]}: log_potential has shape {tuple(log_potential.shape)}, expected one "
                f"number a row, ({self.live.rows},)"
            )

    # --- on disk -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that changes during a run, as tensors and plain data."""
        return {
            "population": self.population.state_dict(),
            "streams": self.streams.state_dict(),
            "memory": self.memory,
            "applied": self.applied,
            "log_ratio": self.log_ratio,
            "live": self.live.candidates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`; the generators of ``streams`` keep their identity."""
        self.population = Population.from_state_dict(state["population"])
        self.run.population = self.population
        for name, generators in (("noise", self.streams.noise), ("resampling", self.streams.resampling)):
            for generator, saved in zip(generators, state["streams"][name], strict=True):
                generator.set_state(saved.clone())
        self.memory, self.applied, self.log_ratio = state["memory"], state["applied"], state["log_ratio"]
        self.live = replace(self.live, candidates=state["live"])

    # --- the end -----------------------------------------------------------------------------------------------------

    def conclude(self, samples: Tensor, decode: Decode, final: Final, chunk_size: int | None) -> Tensor:
        """The last correction: exactly exp(log-tilt) in the end, whatever was applied on the way.

        Args:
            samples: (rows, ...) final states of the batch.
            decode: for rewards on images.
            final: see :func:`feynkac.steering.attach`.
            chunk_size: of rewards.

        Returns:
            Rows of the batch (P x K,) that are the outputs.
        """
        self._merge_equal_children(samples)
        self._remark_on_silence()
        live = self.live_rows
        mine = samples if live is None else samples.index_select(0, live.to(samples.device))
        targets = self._targets(mine, decode, chunk_size)
        self._count_rewards()
        correction = torch.zeros(self.live.rows, dtype=torch.float64)
        total = correction
        for target, applied in zip(targets, self.applied, strict=True):
            correction = correction + torch.where(target.log_tilt > -torch.inf, target.log_tilt - applied, -torch.inf)
            total = total + target.log_tilt
        child, increment = self._choose(correction)
        self.population = self.population.reweighted(increment, on_collapse="keep")
        ancestors = self._final_ancestors(self.live.chosen(total, child), final)
        self._report(targets, total, ancestors, child)
        return self.layout.rows_of(ancestors, child, 1)

    def _targets(self, samples: Tensor, decode: Decode, chunk_size: int | None) -> list[Target]:
        shape = (self.layout.populations, self.layout.particles, self.live.candidates)
        shared: dict[str, Any] = {}
        weights = self.population.log_weights
        contexts = [
            FinalContext(samples, decode, shape, weights, applied, chunk_size, shared) for applied in self.applied
        ]
        asked = zip(self.controls, contexts, self.memory, strict=True)
        return [control.target(context, memory) for control, context, memory in asked]

    def _merge_equal_children(self, samples: Tensor) -> None:
        """A last move without noise leaves a particle's children equal: one of them stands for all."""
        if self.live.candidates == 1 or self.log_ratio is not None:
            return
        m = self.live.candidates
        same = [_equal_children(self.layout.grouped(samples)[:, :, :m])]
        same += [_equal_children(self.live.grouped(applied)) for applied in self.applied]
        if not all(same):
            return
        first = self.live.rows_of(self._identity(), torch.zeros_like(self._identity()), 1)
        self.memory = [{name: value[first] for name, value in memory.items()} for memory in self.memory]
        self.applied = [value[first] for value in self.applied]
        self.live = replace(self.live, candidates=1)

    def _final_ancestors(self, log_tilt: Tensor, final: Final) -> Tensor:
        if final == "weighted":
            return self._identity()
        if final == "resampled":
            self.population, ancestors = self.population.resampled(
                self.streams.resampling, scheme=self.resampler, threshold=1.1
            )
            return self._identity() if ancestors is None else ancestors
        self.run.note('final="best" returns the best sample for every particle: not a weighted draw', biased=True)
        population = self.population
        alive = torch.where(population.log_weights > -torch.inf, log_tilt, -torch.inf)
        equal = torch.where(population.collapsed[:, None], -torch.inf, torch.zeros_like(log_tilt))
        base = torch.where(population.collapsed, 0.0, population.log_evidence)
        self.population = replace(population, log_weights=equal, log_base=base)
        return alive.argmax(dim=1, keepdim=True).expand_as(log_tilt)

    def _remark_on_silence(self) -> None:
        """A schedule that named no move of this run is probably not what was meant; an empty one is."""
        for name, judged, control in zip(self.names, self.judged, self.controls, strict=True):
            if not judged and getattr(control, "when", None) is not None and not never_due(control):
                self.run.note(
                    f"{name} was not due at any of the {len(self.run.records)} moves: it judged the end alone"
                )

    def _report(self, targets: list[Target], total: Tensor, ancestors: Tensor, child: Tensor) -> None:
        def placed(values: Tensor) -> Tensor:
            return self.live.chosen(values, child).gather(1, ancestors)

        self.run.log_tilt = placed(total)
        for name, target in zip(self.names, targets, strict=True):
            self.run.rewards_by_control[name] = placed(target.reward)
            for i, note in enumerate(target.notes):
                self.run.note(note, aloud=i > 0)
            impossible = int((target.log_tilt == -torch.inf).sum())
            if impossible:
                self.run.note(f"{name}: {impossible} of {len(target.log_tilt)} final samples are impossible")
            if target.scale is not None:
                self.run.scales[name] = target.scale

    def _reward_calls(self) -> int:
        return sum(getattr(control, "reward_calls", 0) for control in self.controls)

    def _count_rewards(self) -> None:
        calls = self._reward_calls()
        self.run.calls.reward += calls - self._judged
        self._judged = calls

    def _identity(self) -> Tensor:
        return torch.arange(self.layout.particles).expand(self.layout.populations, -1)


def _equal_children(grouped: Tensor) -> bool:
    """(P, K, M, ...): are a particle's M entries the same?"""
    return bool((grouped == grouped[:, :, :1]).all())


def _distinct(names: list[str]) -> list[str]:
    """Names with a number behind those that occur twice."""
    made: list[str] = []
    for name in names:
        made.append(name if name not in made else f"{name} ({1 + sum(m.startswith(name) for m in made)})")
    return made
