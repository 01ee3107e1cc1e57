"""Collective variables that somebody else computes: any callable, or a TorchScript file."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .base import CollectiveVariable, check_positions, wrapped
from .variables import Variables

__all__ = ["CallableVariable", "TorchScriptVariable"]


@dataclass(frozen=True)
class CallableVariable:
    """A function of positions as a collective variable.

    Args:
        function: from positions (B, N, 3) in nm to values (B,), in torch, so that it can be differentiated; values of
            another type or device are moved to that of the positions.
        name: label in files and plots.
        unit: of the values.
        period: of the values, which the function keeps in [-period/2, period/2]; None for an open axis.

    Example:
        >>> end = CallableVariable(lambda x: (x[:, -1] - x[:, 0]).norm(dim=-1), name="end_to_end", unit="nm")
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    name: str
    unit: str = ""
    period: float | None = None

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B,) of positions (B, N, 3) in nm.

        Raises:
            ValueError: if the function fails, or returns another shape or complex numbers.
        """
        check_positions(self.name, positions, ())
        values = _called(self.name, self.function, positions)
        if not isinstance(values, torch.Tensor) or values.shape != positions.shape[:1]:
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"{self.name}: expected values of shape ({len(positions)},), got {shape}")
        if values.is_complex():
            raise ValueError(f"{self.name}: expected real values, got {values.dtype}")
        return values.to(positions)


@dataclass(frozen=True, eq=False)
class TorchScriptVariable:
    """A TorchScript module, such as a learned variable exported by mlcolvar, as a collective variable.

    The module gets positions (B, N, 3) in nm or the values (B, d) of other variables, in its own floating-point type,
    and returns (B,) or (B, c).

    Args:
        module: the module, of which a copy is taken, or the file it was saved to; in evaluation mode, without dropout,
            and with parameters that stay as they are.
        inputs: variables whose values are the module's input; None for positions.
        atoms: atoms whose positions are the module's input, in this order; None for all.
        component: column of the output.
        name: label in files and plots.
        unit: of the values.
        period: of the values, which are shifted into [-period/2, period/2); None for an open axis.
        dtype: floating-point type of the input; None for that of the module's parameters, or of the positions.

    Raises:
        ValueError: for a file that cannot be read, what is no module, atoms together with inputs, or a period that is
            not positive.
    """

    module: torch.jit.ScriptModule | str | Path
    inputs: Variables | Sequence[CollectiveVariable] | None = None
    atoms: tuple[int, ...] | None = None
    component: int = 0
    name: str = "torchscript"
    unit: str = ""
    period: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.atoms is not None and self.inputs is not None:
            raise ValueError(f"{self.name}: atoms are for modules that take positions, not other variables")
        if self.period is not None and not (math.isfinite(self.period) and self.period > 0):
            raise ValueError(f"{self.name}: the period must be positive, got {self.period}")
        if self.inputs is not None and not isinstance(self.inputs, Variables):
            object.__setattr__(self, "inputs", Variables(self.inputs))
        given = self.module
        if not isinstance(given, str | Path | torch.nn.Module):
            raise ValueError(f"{self.name}: expected a TorchScript module or its file, got {type(given).__name__}")
        own = _load(self.name, Path(given)) if isinstance(given, str | Path) else copy.deepcopy(given)
        own.eval()
        for parameter in own.parameters():  # copies of scripted ones carry a graph, and cannot be told requires_grad_
            parameter.detach_()
        object.__setattr__(self, "module", own)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B,) of positions (B, N, 3) in nm.

        Raises:
            ValueError: if the module fails or returns another shape.
        """
        check_positions(self.name, positions, self.atoms or ())
        given = positions
        if self.atoms is not None:
            given = positions.index_select(1, torch.tensor(self.atoms, device=positions.device))
        if isinstance(self.inputs, Variables):
            given = self.inputs(positions)
        module = self.module
        assert isinstance(module, torch.nn.Module)
        kept = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), given)
        values = _called(self.name, module, given.to(kept.device, self.dtype or kept.dtype))
        if not isinstance(values, torch.Tensor) or values.shape[:1] != positions.shape[:1] or values.ndim > 2:
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(f"{self.name}: the module must return ({len(positions)}, c), got {shape}")
        columns = values[:, None] if values.ndim == 1 else values
        if not 0 <= self.component < columns.shape[1]:
            raise ValueError(f"{self.name}: component {self.component} is none of the module's {columns.shape[1]}")
        value = columns[:, self.component].to(positions)
        return value if self.period is None else wrapped(value, self.period)


def _called(name: str, function: Callable[[torch.Tensor], Any], given: torch.Tensor) -> Any:
    try:
        return function(given)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name}: the function failed: {type(error).__name__}: {error}") from error


def _load(name: str, path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export, whose files mlcolvar and PLUMED do not write
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            module: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name}: {path} cannot be read as a TorchScript file: {first}") from error
    return module
