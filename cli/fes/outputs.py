"""What `feynkac fes` writes and prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ..errors import UserError
from ..report.style import png
from ..results import Number, as_json

__all__ = ["Outputs", "refuse_existing", "uncertainty_of", "write_rest"]


@dataclass(frozen=True)
class Outputs:
    """Names of the files, all made from one.

    Attributes:
        table: of the free energy; None where none is written (a grid that is only drawn again).
        stem: what pictures and numbers start with.
        prefix: of the numbered tables of ``--stride``; None without.
    """

    table: Path | None
    stem: Path
    prefix: str | None = None

    @classmethod
    def of(cls, outfile: Path | None, default: str, *, stride: bool = False) -> Outputs:
        """By ``--outfile`` or a default, which a folder that exists takes in.

        With a stride the name is what the numbers are put behind, as in ``sum_hills``.
        """
        if outfile is not None and outfile.is_dir():
            path, named = outfile / default, False
        else:
            path, named = outfile or Path(default), outfile is not None
        stem = path.with_suffix("") if path.suffix in (".dat", ".png", ".json") else path
        if not stride:
            return cls(path, stem)
        given = str(path) if named and path.suffix != ".dat" else f"{stem}_"
        return cls(None, Path(given.rstrip("_.-") or "fes"), given)

    def numbered(self, count: int) -> list[Path]:
        """``fes_0.dat`` and so on."""
        return [Path(f"{self.prefix}{k}.dat") for k in range(count)]

    def beside(self, ending: str) -> Path:
        """A file whose name starts alike: ``fes`` and ``_drift.png``."""
        return self.stem.with_name(self.stem.name + ending)

    @property
    def uncertainty(self) -> Path:
        """Table with errors."""
        assert self.table is not None
        return uncertainty_of(self.table)


def uncertainty_of(table: Path) -> Path:
    """The table with the errors of another."""
    return table.with_name(f"{table.stem}_uncertainty{table.suffix or '.dat'}")


def refuse_existing(paths: Sequence[Path]) -> None:
    """Refuse to start if a file would be overwritten, or its folder is missing.

    Raises:
        FileExistsError: naming the first file that is there.
        UserError: a folder that is not there.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise UserError(f"--outfile: there is no folder {path.parent}")
        if path.exists() or path.is_symlink():
            way = "choose another --outfile" + (", or --no-plots" if path.suffix == ".png" else "")
            raise FileExistsError(f"{path} exists already; nothing is overwritten: {way}")


def write_rest(
    numbers: Sequence[Number], warnings: Sequence[str], json_path: Path | None, pictures: Mapping[Path, Figure]
) -> None:
    """Write pictures, and numbers where they have a name; none of the files exists."""
    for path, fig in pictures.items():
        with open(path, "xb") as file:
            file.write(png(fig))
    if json_path is None:
        return
    text = json.dumps(as_json(list(numbers), list(warnings)), indent=2, ensure_ascii=False) + "\n"
    with open(json_path, "x", encoding="utf-8") as out:
        out.write(text)
