"""What a metadynamics run leaves: samples of the frozen bias, and apart from them those of the filling."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...fkc.bias import RepulsionBias
from .metadynamics_state import MetadynamicsState, Record

__all__ = ["Collector", "FillingRecords", "MetadynamicsResult"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FillingRecords:
    """Records of the growing bias, for pictures of convergence: the law of the walkers changed while they were made.

    Attributes:
        time: (F,) ps.
        values: (F, B, d).
        bias: (F, B) kJ/mol, V of its own time.
        rct: (F,) kJ/mol, c(t); NaN where there is none.
        alive: (F, B) bool.
        approximate_log_weights: (F, B): (V_t - c(t)) / kT, NaN without c(t); V_t / kT for OPES; -inf for retired
            walkers.
    """

    time: Tensor
    values: Tensor
    bias: Tensor
    rct: Tensor
    alive: Tensor
    approximate_log_weights: Tensor

    @property
    def frozen(self) -> bool:
        """False: estimates from these are approximate, and error bars do not cover that."""
        return False


@dataclass(frozen=True, kw_only=True, eq=False)
class MetadynamicsResult:
    """Samples under a frozen bias: T records of B walkers.

    Attributes:
        time: (T,) ps.
        values: (T, B, d), the biased variables.
        bias: (T, B) kJ/mol, V of the frozen bias.
        log_weights: (T, B) of the unbiased law, V / kT; -inf for retired walkers. Walkers are independent, records
            of one walker are not: use walkers as groups.
        alive: (T, B) bool.
        energy: (T, B) kJ/mol, without bias and restraints; +inf for retired walkers.
        restraints: (T, B) kJ/mol each, by name.
        positions: (K, B, N, 3) nm, a part of the records, or None.
        position_records: (K,) which records these are.
        filling: records of the growing bias.
        frozen_bias: what the samples felt.
        state: the end of the run.
        energy_calls: evaluations spent, all stages.
        deposits: batches deposited.
        n_retired: walkers without a finite energy.
        n_restarted: walkers that had none while they were relaxed or melted, and started again.
        n_outside: samples of living walkers beyond an end of the bias's grid, where V is that of the end.
        complete: False if the run was stopped.
    """

    time: Tensor
    values: Tensor
    bias: Tensor
    log_weights: Tensor
    alive: Tensor
    energy: Tensor
    restraints: dict[str, Tensor]
    positions: Tensor | None
    position_records: Tensor
    filling: FillingRecords
    frozen_bias: RepulsionBias
    state: MetadynamicsState
    energy_calls: int
    deposits: int
    n_retired: int
    n_restarted: int
    n_outside: int
    complete: bool

    @property
    def frozen(self) -> bool:
        """True: the bias stood still, and the weights are exact."""
        return True

    @property
    def groups(self) -> Tensor:
        """(T * B,) the walker of each sample, for error bars of flattened records."""
        return torch.arange(self.values.shape[1]).repeat(len(self.values))


@dataclass
class Collector:
    """Gathers records into a result, also over a kill: its state goes into the same checkpoint as the run's.

    Attributes:
        positions_every: keep positions of every n-th record of the production; 0 for none.

    Example:
        >>> for step in follow(method, settings, generator, state):
        ...     collector.add(step.stage, step.record)
        ...     tensors = {**step.state.state_dict(), **collector.state_dict(), "generator": generator.get_state()}
        ...     save_state("run", tensors, {})
        >>> tensors, _ = load_state("run")  # in another process
        >>> state, collector = MetadynamicsState.from_state_dict(tensors), Collector.from_state_dict(tensors)
        >>> result = collector.result(state, energy_calls=energy.n_calls, expected=settings.records)
    """

    positions_every: int = 0
    _fill: list[Record] = field(default_factory=list)
    _sample: list[Record] = field(default_factory=list)
    _positions: list[Tensor] = field(default_factory=list)

    def add(self, stage: str, record: Record) -> None:
        """Take in a record of "fill" or "sample"; others are dropped."""
        if stage == "fill":
            self._fill.append(_slim(record))
        elif stage == "sample":
            if self.positions_every and len(self._sample) % self.positions_every == 0:
                self._positions.append(record.positions)
            self._sample.append(_slim(record))

    def state_dict(self) -> dict[str, Tensor]:
        """All that was gathered as tensors, under names that those of a :class:`MetadynamicsState` leave free."""
        found = {"positions_every": torch.tensor(self.positions_every)}
        for stage, rows in (("fill", self._fill), ("sample", self._sample)):
            if rows:
                found |= {f"{stage}.{name}": tensor for name, tensor in _columns(rows).items()}
        if self._positions:
            found["sample.positions"] = torch.stack(self._positions)
        return found

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "Collector":
        """The collector that :meth:`state_dict` was taken of; other entries are passed over."""
        fill, sample = _rows_of(state, "fill"), _rows_of(state, "sample")
        return cls(int(state["positions_every"]), fill, sample, list(state.get("sample.positions", ())))

    def result(self, state: MetadynamicsState, *, energy_calls: int, expected: int) -> MetadynamicsResult:
        """All that was gathered.

        Args:
            state: the end of the run.
            energy_calls: evaluations spent.
            expected: records of a complete production.
        """
        rows, walkers, bias = self._sample, state.walkers, state.bias
        count, size = len(walkers.alive), len(bias.variables)
        values = _stacked([r.values for r in rows], (count, size))
        alive = _stacked([r.alive for r in rows], (count,), torch.bool)
        kept = torch.arange(len(self._positions)) * max(1, self.positions_every)
        restraints = rows[0].restraints if rows else {}
        return MetadynamicsResult(
            time=torch.tensor([r.time for r in rows], dtype=torch.float64),
            values=values,
            bias=_stacked([r.bias for r in rows], (count,)),
            log_weights=_stacked([r.log_weights for r in rows], (count,)),
            alive=alive,
            energy=_stacked([r.energy for r in rows], (count,)),
            restraints={name: torch.stack([r.restraints[name] for r in rows]) for name in restraints},
            positions=torch.stack(self._positions) if self._positions else None,
            position_records=kept,
            filling=self._filling(count, size),
            frozen_bias=bias,
            state=state,
            energy_calls=energy_calls,
            deposits=state.deposits,
            n_retired=walkers.n_retired,
            n_restarted=state.restarted,
            n_outside=int(bias.outside(values[alive]).sum()),
            complete=len(rows) == expected,
        )

    def _filling(self, count: int, size: int) -> FillingRecords:
        rows = self._fill
        return FillingRecords(
            time=torch.tensor([r.time for r in rows], dtype=torch.float64),
            values=_stacked([r.values for r in rows], (count, size)),
            bias=_stacked([r.bias for r in rows], (count,)),
            rct=torch.tensor([r.rct for r in rows], dtype=torch.float64),
            alive=_stacked([r.alive for r in rows], (count,), torch.bool),
            approximate_log_weights=_stacked([r.log_weights for r in rows], (count,)),
        )


def _stacked(rows: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.stack(rows) if rows else torch.empty((0, *shape), dtype=dtype)


def _columns(rows: list[Record]) -> dict[str, Tensor]:
    """Records as one tensor a field, and one a restraint."""
    found = {name: torch.tensor([getattr(r, name) for r in rows], dtype=torch.float64) for name in ("time", "rct")}
    for name in ("values", "bias", "energy", "alive", "log_weights"):
        found[name] = torch.stack([getattr(r, name) for r in rows])
    return found | {f"restraint.{name}": torch.stack([r.restraints[name] for r in rows]) for name in rows[0].restraints}


def _rows_of(state: dict[str, Tensor], stage: str) -> list[Record]:
    """The inverse, from the entries of a stage."""
    mine = {name.removeprefix(f"{stage}."): tensor for name, tensor in state.items() if name.startswith(f"{stage}.")}
    walls = {name.removeprefix("restraint."): mine[name] for name in mine if name.startswith("restraint.")}
    return [
        Record(
            time=float(mine["time"][k]),
            values=mine["values"][k],
            bias=mine["bias"][k],
            rct=float(mine["rct"][k]),
            energy=mine["energy"][k],
            restraints={name: wall[k] for name, wall in walls.items()},
            alive=mine["alive"][k],
            log_weights=mine["log_weights"][k],
            positions=torch.empty(0, dtype=torch.float64),
            frozen=stage == "sample",
            hills=(),
        )
        for k in range(len(mine.get("time", ())))
    ]


def _slim(record: Record) -> Record:
    """Without positions, whose memory is not shared either, and hills."""
    return record._replace(positions=record.positions.new_empty((0, *record.positions.shape[1:])), hills=())
