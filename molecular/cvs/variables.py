"""Several collective variables as one map, and the forces of a bias on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import torch

from .angle import Angle
from .base import AnalyticVariable, CollectiveVariable, PointKernel, check_positions, coordinate_rows, gather_points
from .distance import Distance
from .torsion import Torsion

__all__ = ["Linearisation", "Variables"]


class Variables:
    """Collective variables side by side: positions (B, N, 3) nm to values (B, d).

    Args:
        variables: at least one, of different names.

    Raises:
        ValueError: for none, or for a name given twice.

    Example:
        >>> from feynkac.molecular.cvs import Torsion
        >>> backbone = Variables([Torsion(4, 6, 8, 14, name="phi"), Torsion(6, 8, 14, 16, name="psi")])
        >>> backbone(torch.rand(5, 22, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, variables: Sequence[CollectiveVariable]) -> None:
        if not variables:
            raise ValueError("at least one collective variable is needed")
        names = [v.name for v in variables]
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise ValueError(f"two collective variables are called {twice[0]!r}")
        self._variables = tuple(variables)
        self._bundles, self._analytic, self._others = _sorted_by_method(self._variables)
        self._rows: dict[torch.device, list[torch.Tensor]] = {}
        self._attached: set[str] = set()

    def __len__(self) -> int:
        return len(self._variables)

    def __iter__(self) -> Iterator[CollectiveVariable]:
        return iter(self._variables)

    def __getitem__(self, index: int) -> CollectiveVariable:
        return self._variables[index]

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each variable."""
        return tuple(v.name for v in self._variables)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Period of each variable, or None."""
        return tuple(v.period for v in self._variables)

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each variable."""
        return tuple(v.unit for v in self._variables)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B, d) of positions (B, N, 3) in nm; differentiable.

        Raises:
            ValueError: the positions require a gradient, and the values of a variable do not follow them.
        """
        columns = {v.name: v(positions) for v in self._variables}
        if torch.is_grad_enabled() and positions.requires_grad:
            self._check_graph(positions, columns)
        return torch.stack(list(columns.values()), dim=1)

    def value_and_pullback(
        self, positions: torch.Tensor, gradient_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, and the forces -dV/ds . ds/dx of a function V of them.

        Args:
            positions: (B, N, 3) in nm.
            gradient_of: from values (B, d) to dV/ds (B, d).

        Returns:
            Values (B, d), and forces (B, N, 3) in the unit of V per nm.
        """
        linear = self.linearised(positions)
        return linear.values, linear.forces(gradient_of(linear.values))

    def linearised(self, positions: torch.Tensor) -> Linearisation:
        """Values at positions (B, N, 3), ready to pull gradients with respect to them back to the atoms.

        Analytic gradients are used where a variable has them, one kernel call for all variables of a kind; the others
        share one pass of autograd, also under ``torch.no_grad``.  The result carries no graph.

        Raises:
            ValueError: for positions of another shape, or a variable whose values do not follow the positions.
        """
        check_positions(self.names[0], positions, ())
        columns: list[torch.Tensor | None] = [None] * len(self)
        parts: list[_Part] = []
        with torch.no_grad():
            for bundle, rows in zip(self._bundles, self._rows_on(positions.device), strict=True):
                bundle.check(positions)
                values, gradient = bundle.kernel(gather_points(positions, rows))
                for column, value in zip(bundle.columns, values.unbind(), strict=True):
                    columns[column] = value
                parts.append(_Rows(bundle.columns, rows, gradient))
            for column, variable in self._analytic:
                value, atoms, slope = variable.value_and_gradient(positions)
                columns[column] = value
                parts.append(_Rows((column,), coordinate_rows(atoms[None]), slope.permute(1, 2, 0)[:, :, None]))
        if self._others:
            parts.append(self._differentiated(positions, columns))
        return Linearisation(torch.stack(cast(list[torch.Tensor], columns), dim=1), positions, tuple(parts))

    def _differentiated(self, positions: torch.Tensor, columns: list[torch.Tensor | None]) -> _Graph:
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_(True)
            found = {variable.name: variable(leaf) for _, variable in self._others}
            self._check_graph(leaf, found)
            values = torch.stack(list(found.values()), dim=1)
        for (column, _), value in zip(self._others, values.detach().unbind(1), strict=True):
            columns[column] = value
        return _Graph(tuple(column for column, _ in self._others), leaf, values)

    def _check_graph(self, positions: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """Refuse values without a gradient; the first time also those whose graph does not lead to the positions."""
        for name, value in values.items():
            if value.requires_grad and name not in self._attached:
                (slope,) = torch.autograd.grad(value.sum(), positions, retain_graph=True, allow_unused=True)
                self._attached |= {name} if slope is not None else set()
            if not value.requires_grad or name not in self._attached:
                raise ValueError(
                    f"{name}: the values do not follow the positions, so that no force would act through them; compute "
                    "them in torch, without detach(), no_grad() or numpy, or give the variable value_and_gradient; a "
                    "constant c is written c + 0 * positions.sum(dim=(1, 2))"
                )

    def _rows_on(self, device: torch.device) -> list[torch.Tensor]:
        if device not in self._rows:
            self._rows[device] = [coordinate_rows(torch.tensor(b.atoms, device=device)) for b in self._bundles]
        return self._rows[device]


class _Part(Protocol):
    """Some of the variables, with what leads from their gradients to forces."""

    def add_forces(self, forces: torch.Tensor, slope: torch.Tensor) -> None:
        """Add -slope . ds/dx to forces (3 N, B), for slopes (d, B) of all variables."""
        ...


class Linearisation(NamedTuple):
    """Variables at some positions, to first order.

    Attributes:
        values: (B, d).
        positions: (B, N, 3) in nm, where they were taken.
        parts: for internal use.
    """

    values: torch.Tensor
    positions: torch.Tensor
    parts: tuple[_Part, ...]

    def forces(self, gradient: torch.Tensor) -> torch.Tensor:
        """Forces -dV/ds . ds/dx (B, N, 3) of gradients dV/ds (B, d).

        Raises:
            ValueError: for another shape.
        """
        if gradient.shape != self.values.shape:
            raise ValueError(f"gradients must be {tuple(self.values.shape)}, got {tuple(gradient.shape)}")
        with torch.no_grad():
            flat = torch.zeros_like(self.positions, memory_format=torch.contiguous_format).flatten(1)
            slope = gradient.to(self.values.dtype).t()
            for part in self.parts:
                part.add_forces(flat.t(), slope)
        return flat.view(self.positions.shape)


class _Rows(NamedTuple):
    """Gradients (k, 3, T, B) on the coordinate rows (k, 3, T)."""

    columns: tuple[int, ...]
    rows: torch.Tensor
    gradient: torch.Tensor

    def add_forces(self, forces: torch.Tensor, slope: torch.Tensor) -> None:
        if len(self.columns) < len(slope) or self.columns != tuple(range(len(slope))):
            slope = slope[list(self.columns)]
        forces.index_add_(0, self.rows.flatten(), (self.gradient * slope).reshape(-1, slope.shape[1]), alpha=-1)


class _Graph(NamedTuple):
    """Values (B, t) recorded as functions of ``leaf`` (B, N, 3)."""

    columns: tuple[int, ...]
    leaf: torch.Tensor
    values: torch.Tensor

    def add_forces(self, forces: torch.Tensor, slope: torch.Tensor) -> None:
        (pulled,) = torch.autograd.grad(self.values, self.leaf, slope[list(self.columns)].t(), retain_graph=True)
        forces -= pulled.flatten(1).t()


class _Bundle(NamedTuple):
    """Variables that one kernel computes together."""

    kernel: PointKernel
    columns: tuple[int, ...]
    atoms: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def check(self, positions: torch.Tensor) -> None:
        for name, atoms in zip(self.names, self.atoms, strict=True):
            check_positions(name, positions, atoms)


def _sorted_by_method(
    variables: Sequence[CollectiveVariable],
) -> tuple[list[_Bundle], list[tuple[int, AnalyticVariable]], list[tuple[int, CollectiveVariable]]]:
    by_kernel: dict[PointKernel, list[int]] = {}
    analytic: list[tuple[int, AnalyticVariable]] = []
    others: list[tuple[int, CollectiveVariable]] = []
    for column, variable in enumerate(variables):
        kernel = variable.kernel if isinstance(variable, Torsion | Angle | Distance) else None
        if kernel is not None:
            by_kernel.setdefault(kernel, []).append(column)
        elif isinstance(variable, AnalyticVariable):
            analytic.append((column, variable))
        else:
            others.append((column, variable))
    bundles = [
        _Bundle(
            kernel,
            tuple(columns),
            tuple(cast(Torsion, variables[c]).atoms for c in columns),
            tuple(variables[c].name for c in columns),
        )
        for kernel, columns in by_kernel.items()
    ]
    return bundles, analytic, others
