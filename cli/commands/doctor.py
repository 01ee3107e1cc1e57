"""`feynkac doctor`: what is installed, which devices there are, and how fast energies are here."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..paths import resolve

__all__ = ["doctor"]

_EXTRAS = {
    "molecular": ("openmm", "mdtraj", "pymbar", "scipy", "zuko"),
    "diffusion": ("diffusers", "transformers"),
    "interfaces": ("ase",),
    "gpu": ("triton",),
}
_CORE = ("feynkac", "torch", "numpy", "safetensors", "pydantic", "typer", "rich", "matplotlib")
_FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
Row = tuple[str, str]


def doctor(console: Console, *, measure: bool = True) -> None:
    """Print the state of this installation; ``measure`` also times the energies (a few seconds)."""
    _show(console, "Versions", _versions())
    _show(console, "Optional parts", _extras())
    _show(console, "Devices", _devices())
    if util.find_spec("openmm") is None:
        return
    _show(console, "Compiled CPU kernel", _kernel())
    if measure:
        with console.status("measuring energies on alanine dipeptide"):
            rows = list(_speeds())
        _show(console, "Energies with forces a second, alanine dipeptide, amber99sbildn + amber99_obc", rows)


def _show(console: Console, title: str, rows: Iterator[Row] | list[Row]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for left, right in rows:
        table.add_row(f"  {left}", escape(right))
    console.print(table)
    console.print()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Row]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in _CORE:
        yield name, _version(name) or "missing"


def _extras() -> Iterator[Row]:
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if _version(name) is None]
        found = ", ".join(f"{n} {_version(n)}" for n in names if n not in missing)
        if missing:
            hint = f'missing {", ".join(missing)}: pip install "feynkac[{extra}]"'
            yield extra, "; ".join(part for part in (found, hint) if part)
        else:
            yield extra, found


def _devices() -> Iterator[Row]:
    yield "CPU", f"{os.cpu_count()} logical cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "CUDA", f"none (torch {torch.__version__})"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _kernel() -> Iterator[Row]:
    from ...molecular.energies import native_status

    status = native_status()
    yield "available", "yes" if status.available else "no (plain torch is used: slower, same numbers)"
    yield "detail", status.reason if status.path is None else f"{status.reason} ({status.path})"


def _speeds() -> Iterator[Row]:
    from ...molecular.energies import BatchedForceField, measure_platforms
    from ...molecular.systems import load_system

    built = load_system(resolve("data:molecules/alanine_dipeptide.pdb", Path()), force_field=_FORCE_FIELD)
    cores = tuple(dict.fromkeys((1, os.cpu_count() or 1)))
    for speed in measure_platforms(built.system, built.positions, threads=cores):
        threads = f", {speed.threads} threads" if speed.platform == "CPU" and speed.threads > 1 else ""
        yield f"OpenMM {speed.platform}{threads}", f"{speed.per_second:,.0f}, one configuration at a time"
    for device in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))):
        force_field = BatchedForceField.from_openmm(built.system, dtype=torch.float32, device=device)
        batch = built.positions.float().expand(1024, -1, -1).contiguous().to(device)

        def evaluate(field: BatchedForceField = force_field, x: torch.Tensor = batch) -> object:
            return field.energy_and_forces(x).energy.sum().item()

        backend = force_field.backend if device == "cpu" else "torch"
        yield f"batched ({backend}, {device})", f"{1024 * _rate(evaluate):,.0f}, batch 1024, float32"


def _rate(work: Callable[[], object], seconds: float = 0.5) -> float:
    """Calls a second, after one call to warm up."""
    work()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - start)
