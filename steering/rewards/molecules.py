"""Rewards of molecules, by RDKit: drug-likeness, synthetic accessibility, lipophilicity.

All take SMILES strings or RDKit molecules; what is no valid molecule gets NaN, which steering counts as impossible.
"""

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["QED", "LogP", "SyntheticAccessibility"]


class _MoleculeReward(ABC):
    name: str

    def __init__(self) -> None:
        _chemistry()  # a missing RDKit is said here rather than in the middle of a run

    def __call__(self, molecules: Sequence[Any]) -> Tensor:
        """Values (B,), float64; NaN for an invalid molecule."""
        if isinstance(molecules, str):
            raise TypeError("molecules: got one string, expected a list of SMILES")
        parsed = [_molecule(molecule) for molecule in molecules]
        values = [torch.nan if molecule is None else self._value(molecule) for molecule in parsed]
        return torch.tensor(values, dtype=torch.float64)

    @abstractmethod
    def _value(self, molecule: Any) -> float: ...


@final
class QED(_MoleculeReward):
    """Quantitative estimate of drug-likeness in [0, 1] (Bickerton et al. 2012)."""

    name = "qed"

    def _value(self, molecule: Any) -> float:
        return float(_chemistry().QED.qed(molecule))


@final
class LogP(_MoleculeReward):
    """Logarithm of the octanol-water partition coefficient, by atom contributions (Wildman and Crippen 1999)."""

    name = "logp"

    def _value(self, molecule: Any) -> float:
        return float(_chemistry().Crippen.MolLogP(molecule))


@final
class SyntheticAccessibility(_MoleculeReward):
    """(10 - SA)/9, SA the score of Ertl and Schuffenhauer 2009: 1 for the easiest to make, 0 for the hardest."""

    name = "synthetic_accessibility"

    def _value(self, molecule: Any) -> float:
        return (10.0 - float(_sa_scorer().calculateScore(molecule))) / 9.0


@functools.cache
def _chemistry() -> Any:
    try:
        from rdkit import Chem
        from rdkit.Chem import QED, Crippen  # noqa: F401  (submodules of Chem, found by attribute)
    except ImportError as error:
        raise ImportError("rewards of molecules need RDKit: pip install rdkit") from error
    return Chem


@functools.cache
def _sa_scorer() -> Any:
    """RDKit's contributed scorer, which is shipped as a file outside its packages."""
    from rdkit import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("feynkac_sascorer", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"synthetic accessibility needs RDKit's contributed {path}: pip install rdkit")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _molecule(sample: Any) -> Any:
    if not isinstance(sample, str):
        return sample
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        molecule = _chemistry().MolFromSmiles(sample)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None
