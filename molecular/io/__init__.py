"""Files: DCD with a PDB, PLUMED's COLVAR and fes.dat, NumPy archives. Nothing is overwritten."""

from .errors import FileFormatError
from .fes import FesGrid, read_fes, write_fes, write_fes_uncertainty
from .plumed import PlumedTable, read_colvar, write_colvar
from .trajectory import read_trajectory, write_trajectory
from .weights import read_weights, write_weights

__all__ = [
    "write_trajectory",
    "read_trajectory",
    "write_colvar",
    "read_colvar",
    "PlumedTable",
    "write_fes",
    "write_fes_uncertainty",
    "read_fes",
    "FesGrid",
    "write_weights",
    "read_weights",
    "FileFormatError",
]
