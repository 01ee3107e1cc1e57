"""The state of a batch of walkers, and what becomes of those that leave the finite energies."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LangevinState",
    "WalkerExploded",
    "WalkerRestartedWarning",
    "WalkerRetiredWarning",
    "WalkersExploded",
    "retire",
    "start_retired",
]

_REMEDY = "use a shorter time step or start from relaxed positions"


class WalkerExploded(RuntimeError):
    """A walker reached a configuration without a finite energy; the message names walker and step."""


class WalkersExploded(WalkerExploded):
    """No walker is left; the message names the step and their number."""


class WalkerRetiredWarning(RuntimeWarning):
    """The first walker of a batch was retired; the message names walker and step. Later ones are only counted."""


class WalkerRestartedWarning(RuntimeWarning):
    """Walkers lost their finite energy while they were made ready, and started again; the message has their number."""


class LangevinState(NamedTuple):
    """What the next step needs.

    Attributes:
        positions: (B, N, 3) nm.
        velocities: (B, N, 3) nm/ps; zero for a retired walker.
        energy: (B,) kJ/mol at ``positions``; +inf for a retired walker.
        forces: (B, N, 3) kJ/mol/nm at ``positions``; zero for a retired walker.
        alive: (B,) bool, False for a retired walker.
        steps: time steps made since the start.
    """

    positions: Tensor
    velocities: Tensor
    energy: Tensor
    forces: Tensor
    alive: Tensor
    steps: int

    @property
    def n_retired(self) -> int:
        """Number of retired walkers."""
        return int((~self.alive).sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Every field as a tensor, for :func:`feynkac.fkc.checkpoint.save_state`."""
        fields: dict[str, Tensor] = {name: value for name, value in self._asdict().items() if name != "steps"}
        return fields | {"steps": torch.tensor(self.steps, dtype=torch.int64)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "LangevinState":
        """The state that :meth:`state_dict` was taken of, bit for bit."""
        return cls(**{name: state[name] for name in cls._fields if name != "steps"}, steps=int(state["steps"]))


def retire(now: LangevinState, resting_places: Tensor, *, raising: bool) -> LangevinState:
    """Retire the living walkers whose energy is not finite, and keep the dead ones still.

    ``now.positions`` and ``now.velocities`` are changed in place: they belong to the loop that calls this.

    Args:
        now: after a move, with the energies and forces just evaluated.
        resting_places: (B, N, 3) nm, where a walker that dies now is put.
        raising: raise for the first walker instead.

    Returns:
        The same state with energy +inf and zero forces for dead walkers; ``alive`` is the same object if nobody died.

    Raises:
        WalkerExploded: with ``raising``, for a walker without finite energy.
        WalkersExploded: nobody is left.
    """
    lost = now.alive & ~torch.isfinite(now.energy)
    alive = now.alive
    if bool(lost.any()):
        alive = _count(now, lost, raising)
        now.positions[lost] = resting_places[lost]
        now.velocities[lost] = 0.0
    energy = torch.where(alive, now.energy, torch.inf)
    return now._replace(energy=energy, forces=now.forces.masked_fill(~alive[:, None, None], 0.0), alive=alive)


def start_retired(state: LangevinState, *, raising: bool) -> LangevinState:
    """A starting state whose walkers without finite energy rest on the start of the first living walker.

    Raises:
        WalkerExploded: with ``raising``, for a walker without finite energy.
        WalkersExploded: no walker starts with a finite energy.
    """
    finite = torch.isfinite(state.energy)
    if bool(finite.all()):
        return state  # only their sum was not
    first = int(finite.to(torch.int64).argmax())
    fresh = state._replace(positions=state.positions.clone(), velocities=state.velocities.clone())
    return retire(fresh, state.positions[first].expand_as(state.positions), raising=raising)


def _count(now: LangevinState, lost: Tensor, raising: bool) -> Tensor:
    """Who is alive without ``lost``; raises or warns."""
    first, count = int(lost.nonzero()[0]), int(lost.sum())
    alive = now.alive & ~lost
    if raising:
        raise WalkerExploded(
            f"walker {first} (of {count} such) has no finite energy after {now.steps} steps; {_REMEDY}"
        )
    if not bool(alive.any()):
        raise WalkersExploded(
            f"all {len(alive)} walkers lost their finite energy, the last {count} after {now.steps} steps; {_REMEDY}"
        )
    if bool(now.alive.all()):
        warnings.warn(
            f"walker {first} (of {count} such) has no finite energy after {now.steps} steps and is retired; "
            "walkers retired later are counted, without another warning",
            WalkerRetiredWarning,
            stacklevel=4,
        )
    return alive
