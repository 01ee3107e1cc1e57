"""The shipped molecules and the force fields that the tests run them under."""

from importlib.resources import files
from pathlib import Path

FORCE_FIELDS = (
    ("amber99sbildn.xml", "amber99_obc.xml"),
    ("amber14-all.xml", "implicit/obc1.xml"),
    ("amber96.xml", "implicit/obc1.xml"),
    ("amber14-all.xml", "implicit/gbn2.xml"),
)


def molecule_path(name: str) -> Path:
    """Path of a shipped PDB file."""
    return Path(str(files("feynkac.data") / "molecules" / f"{name}.pdb"))
