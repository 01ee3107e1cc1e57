"""Files: DCD with a PDB, PLUMED's COLVAR, HILLS, KERNELS, STATE and grids, OpenMM's biases, NumPy archives.

Nothing is overwritten.
"""

from .append import truncate_rows
from .bias_tables import bias_grid, hills_of, opes_bias_of, opes_kernels_of, opes_table_of, table_of
from .colvar import append_colvar, bias_columns, read_colvar, write_colvar
from .errors import FileFormatError, UnfinishedLineWarning
from .fes import FesGrid, read_fes, write_fes, write_fes_projection, write_fes_uncertainty
from .grid import PlumedGrid, grid_axis, read_grid, write_bias_grid, write_grid
from .hills import HillsTable
from .hills_file import append_hills, read_hills, write_hills
from .hills_sum import evaluate_hills, hills_free_energy, hills_value_and_gradient
from .openmm_bias import OpenMMBias, read_openmm_bias, write_openmm_bias
from .opes import append_opes_kernels, read_opes_kernels, read_opes_state, write_opes_kernels, write_opes_state
from .opes_table import OpesState, OpesTable
from .plumed import PlumedTable
from .trajectory import read_trajectory, write_trajectory
from .weights import read_weights, write_weights

__all__ = [
    "write_trajectory",
    "read_trajectory",
    "write_colvar",
    "append_colvar",
    "read_colvar",
    "bias_columns",
    "PlumedTable",
    "write_hills",
    "append_hills",
    "truncate_rows",
    "read_hills",
    "HillsTable",
    "evaluate_hills",
    "hills_value_and_gradient",
    "hills_free_energy",
    "hills_of",
    "table_of",
    "write_opes_kernels",
    "append_opes_kernels",
    "read_opes_kernels",
    "write_opes_state",
    "read_opes_state",
    "OpesTable",
    "OpesState",
    "opes_bias_of",
    "opes_table_of",
    "opes_kernels_of",
    "write_grid",
    "write_bias_grid",
    "read_grid",
    "grid_axis",
    "bias_grid",
    "PlumedGrid",
    "write_fes",
    "write_fes_projection",
    "write_fes_uncertainty",
    "read_fes",
    "FesGrid",
    "read_openmm_bias",
    "write_openmm_bias",
    "OpenMMBias",
    "write_weights",
    "read_weights",
    "FileFormatError",
    "UnfinishedLineWarning",
]
