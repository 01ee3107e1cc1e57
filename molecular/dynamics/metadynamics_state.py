"""What a metadynamics run carries from step to step, and what it shows."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...fkc.bias import Hills, RepulsionBias
from .walkers import LangevinState

__all__ = ["MetadynamicsState", "Record"]


class MetadynamicsState(NamedTuple):
    """What the next step needs.

    Attributes:
        walkers: positions, velocities, forces under ``bias``, who is alive.
        bias: what all walkers feel now.
        deposits: batches deposited so far.
        restarted: walkers that lost their finite energy while they were made ready, and started again.
    """

    walkers: LangevinState
    bias: RepulsionBias
    deposits: int
    restarted: int = 0

    @property
    def steps(self) -> int:
        """Time steps made since the start."""
        return self.walkers.steps

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state as tensors, for :func:`feynkac.fkc.checkpoint.save_state`; the generator is the caller's."""
        parts = {"walkers": self.walkers.state_dict(), "bias": self.bias.state_dict()}
        flat = {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}
        counts = {"deposits": self.deposits, "restarted": self.restarted}
        return flat | {name: torch.tensor(count, dtype=torch.int64) for name, count in counts.items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "MetadynamicsState":
        """The state that :meth:`state_dict` was taken of, bit for bit."""

        def part(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}

        walkers = LangevinState.from_state_dict(part("walkers"))
        restarted = int(state.get("restarted", 0))  # older states do not have it
        return cls(walkers, RepulsionBias.from_state_dict(part("bias")), int(state["deposits"]), restarted)


class Record(NamedTuple):
    """The walkers at one time; on the CPU but for the positions.

    Attributes:
        time: ps.
        values: (B, d) float64, the biased variables.
        bias: (B,) kJ/mol: V of the bias that brought the walkers here, before a deposit at this very time.
        rct: c(t) in kJ/mol of that bias; NaN for OPES, and for hills without a grid or ``rct_points``.
        energy: (B,) kJ/mol, without bias and restraints; +inf for retired walkers.
        restraints: (B,) kJ/mol each, by name.
        alive: (B,) bool.
        log_weights: (B,) of the unbiased law; -inf for retired walkers. V / kT, exact, if ``frozen``; else approximate:
            (V - c(t)) / kT, NaN without c(t), and V / kT for OPES.
        positions: (B, N, 3) nm.
        frozen: did the bias stand still?
        hills: what was deposited since the record before, this time included; one entry a deposit.
    """

    time: float
    values: Tensor
    bias: Tensor
    rct: float
    energy: Tensor
    restraints: dict[str, Tensor]
    alive: Tensor
    log_weights: Tensor
    positions: Tensor
    frozen: bool
    hills: tuple[Hills, ...]
