"""The compiled CPU kernel of the batched force field: built once with the system's C++ compiler, loaded with ctypes.

The source (forcefield.cpp) is compiled for this very processor at the first use and kept in the user's cache folder
under a name that holds a hash of source, flags and processor. Without a compiler everything still works, in plain
torch and slower; ``native_status()`` says which and why. ``FEYNKAC_NATIVE=0`` in the environment turns the kernel
off; ``FEYNKAC_CACHE`` moves the folder.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .protocol import EnergyForces
from .tables import ForceFieldTables

__all__ = ["NativeKernel", "NativeStatus", "native_status"]

_COMPILE = ("-std=c++17", "-O3", "-ffast-math", "-fopenmp-simd", "-fPIC")
_INT, _DOUBLE, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class NativeStatus(NamedTuple):
    """Whether the compiled kernel can be used, the library's path, and the reason in words."""

    available: bool
    path: Path | None
    reason: str


class _Tables(ctypes.Structure):
    """Mirror of ``FeynkacTables`` in forcefield.cpp."""

    _fields_ = (
        *(
            (name, _INT)
            for name in [
                "n_atoms",
                "n_bonds",
                "n_angles",
                "n_torsions",
                "n_harmonics",
                "n_cmaps",
                "n_exceptions",
            ]
        ),
        *((name, _INT) for name in ["has_nonbonded", "has_born", "has_neck", "buried_term"]),
        *((name, _POINTER) for name in ["bond_atoms", "angle_atoms", "torsion_atoms"]),
        *(
            (name, _POINTER)
            for name in ["bond_length", "bond_k", "angle_theta", "angle_k", "torsion_cosine", "torsion_sine"]
        ),
        ("torsion_constant", _DOUBLE),
        *((name, _POINTER) for name in ["cmap_atoms", "cmap_size", "cmap_offset", "cmap_patches", "qq", "c6", "c12"]),
        *((name, _DOUBLE) for name in ["cutoff", "k_rf", "c_rf"]),
        *((name, _POINTER) for name in ["exception_atoms", "exception_qq", "exception_c6", "exception_c12"]),
        *(
            (name, _POINTER)
            for name in [
                "charge",
                "radius",
                "offset_radius",
                "scaled_radius",
                "tanh_coefficients",
                "neck_m",
                "neck_d",
            ]
        ),
        *((name, _DOUBLE) for name in ["neck_cutoff", "born_coulomb", "solute_dielectric", "solvent_dielectric"]),
        *((name, _DOUBLE) for name in ["kappa", "surface", "born_cutoff"]),
    )


def _cache_folder() -> Path:
    chosen = os.environ.get("FEYNKAC_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feynkac"


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def _flags(compiler: str) -> list[str]:
    """Flags for this processor: its own instruction set, and full-width vectors where the compiler knows the option."""
    flags = list(_COMPILE)
    for candidate in ("-march=native", "-mcpu=native", "-mprefer-vector-width=512"):
        probe = subprocess.run(
            [compiler, candidate, "-x", "c++", "-c", os.devnull, "-o", os.devnull],
            capture_output=True,
            check=False,
        )
        if probe.returncode == 0 and not (candidate == "-mcpu=native" and "-march=native" in flags):
            flags.append(candidate)
    return flags


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(kept[:2])


def _build() -> Path:
    """Compile the kernel unless the cache has it; atomic, so that processes may race."""
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError("no C++ compiler found (looked for $CXX, c++, g++, clang++)")
    source = files(__package__).joinpath("forcefield.cpp").read_text(encoding="utf-8")
    flags = _flags(compiler)
    key = hashlib.sha256("\0".join([source, compiler, *flags, _processor()]).encode()).hexdigest()[:16]
    target = _cache_folder() / f"forcefield-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, unit, library = (
            Path(folder, "forcefield.cpp"),
            Path(folder, "unit.o"),
            Path(folder, "library.so"),
        )
        code.write_text(source, encoding="utf-8")
        # Linked without -ffast-math: with it, loading the library would switch the whole process to flush-to-zero
        # arithmetic.
        for command in (
            [compiler, *flags, "-c", str(code), "-o", str(unit)],
            [compiler, "-shared", "-pthread", str(unit), "-o", str(library), "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"compiling the CPU kernel failed: {done.stderr.strip()[-400:]}")
        library.replace(target)
    return target


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, NativeStatus]:
    if os.environ.get("FEYNKAC_NATIVE", "1") == "0":
        return None, NativeStatus(False, None, "turned off by FEYNKAC_NATIVE=0")
    try:
        path = _build()
        library = ctypes.CDLL(str(path))
        library.feynkac_tables_size.restype = _INT
        if library.feynkac_tables_size() != ctypes.sizeof(_Tables):
            raise RuntimeError("the compiled kernel and its Python mirror disagree about their tables")
    except (OSError, RuntimeError) as error:
        return None, NativeStatus(False, None, str(error))
    for name in ("feynkac_evaluate_float", "feynkac_evaluate_double"):
        function = getattr(library, name)
        function.restype = None
        function.argtypes = (_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT)
    return library, NativeStatus(True, path, "compiled for this processor")


def native_status() -> NativeStatus:
    """Whether the compiled CPU kernel is available here (compiles it at the first call)."""
    return _load()[1]


class NativeKernel:
    """The compiled kernel bound to one molecule's tables.

    ``evaluate`` keeps no state, so that one kernel may serve several threads; it releases the interpreter lock.
    """

    def __init__(self, tables: ForceFieldTables) -> None:
        library, status = _load()
        if library is None:
            raise RuntimeError(f"the compiled CPU kernel is not available: {status.reason}")
        self._library = library
        self._arrays: list[Any] = []
        self._tables = self._fill(tables)

    def _keep(self, array: Any, dtype: type) -> int:
        held: Any = np.ascontiguousarray(array, dtype=dtype)
        self._arrays.append(held)
        return int(held.ctypes.data)

    def _fill(self, t: ForceFieldTables) -> _Tables:
        out = _Tables()
        out.n_atoms, out.n_bonds, out.n_angles = t.n_atoms, len(t.bonds.k), len(t.angles.k)
        out.n_torsions, out.n_harmonics = t.torsions.cosine.shape
        arrays: dict[str, Any] = {
            "bond_atoms": t.bonds.atoms,
            "angle_atoms": t.angles.atoms,
            "torsion_atoms": t.torsions.atoms,
            "bond_length": t.bonds.length,
            "bond_k": t.bonds.k,
            "angle_theta": t.angles.angle,
            "angle_k": t.angles.k,
            "torsion_cosine": t.torsions.cosine,
            "torsion_sine": t.torsions.sine,
        }
        out.torsion_constant = float(t.torsions.constant.sum())
        out.cutoff = out.born_cutoff = -1.0
        if t.cmaps is not None:
            sizes = np.array([len(c) for c in t.cmaps.coefficients])
            offsets = np.concatenate([[0], np.cumsum(16 * sizes**2)])[:-1]
            out.n_cmaps = len(t.cmaps.map_index)
            arrays["cmap_atoms"] = np.concatenate([t.cmaps.first, t.cmaps.second], axis=1)
            arrays["cmap_size"], arrays["cmap_offset"] = sizes[t.cmaps.map_index], offsets[t.cmaps.map_index]
            arrays["cmap_patches"] = np.concatenate([c.ravel() for c in t.cmaps.coefficients])
        if t.nonbonded is not None:
            nb = t.nonbonded
            out.has_nonbonded, out.n_exceptions = 1, len(nb.exception_qq)
            out.cutoff, out.k_rf, out.c_rf = nb.cutoff or -1.0, nb.k_rf, nb.c_rf
            for name in (
                "qq",
                "c6",
                "c12",
                "exception_atoms",
                "exception_qq",
                "exception_c6",
                "exception_c12",
            ):
                arrays[name] = getattr(nb, name)
        if t.born is not None:
            gb = t.born
            out.has_born, out.has_neck, out.buried_term = 1, int(gb.neck_m is not None), int(gb.buried_term)
            out.neck_cutoff, out.born_coulomb, out.kappa, out.surface = (
                gb.neck_cutoff,
                gb.coulomb,
                gb.kappa,
                gb.surface,
            )
            out.solute_dielectric, out.solvent_dielectric = gb.solute_dielectric, gb.solvent_dielectric
            out.born_cutoff = gb.cutoff or -1.0
            for name in ("charge", "radius", "offset_radius", "scaled_radius"):
                arrays[name] = getattr(gb, name)
            arrays["tanh_coefficients"] = gb.tanh
            if gb.neck_m is not None:
                arrays["neck_m"], arrays["neck_d"] = gb.neck_m, gb.neck_d
        for name, array in arrays.items():
            is_index = np.issubdtype(np.asarray(array).dtype, np.integer)
            setattr(out, name, self._keep(array, np.int64 if is_index else np.float64))
        return out

    def evaluate(self, positions: Tensor, *, forces: bool, threads: int) -> EnergyForces:
        """Energies (B,) float64 and forces (B, N, 3) of contiguous CPU positions, in their own precision.

        Without ``forces`` the second entry has no elements. Results may be NaN; the caller checks.
        """
        positions = positions.detach().contiguous()
        energy = torch.empty(len(positions), dtype=torch.float64)
        force = torch.empty_like(positions) if forces else positions.new_empty(0)
        if len(positions):
            single = positions.dtype == torch.float32
            call = self._library.feynkac_evaluate_float if single else self._library.feynkac_evaluate_double
            call(
                ctypes.addressof(self._tables),
                positions.data_ptr(),
                len(positions),
                energy.data_ptr(),
                force.data_ptr() if forces else None,
                max(1, threads),
            )
        return EnergyForces(energy, force)
