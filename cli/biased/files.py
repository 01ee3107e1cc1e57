"""Files of a run folder that grow row by row, and can be cut back to where they were at a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import UserError

__all__ = ["GrowingFiles"]


class GrowingFiles:
    """Tables with one header that are appended to.

    Args:
        folder: of the run.
        names: of all files that may grow in it.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder, self.names = folder, tuple(names)

    def append(self, name: str, write: Callable[[Path], None]) -> None:
        """Add to a file what ``write`` makes at the path that it is given; its header only if the file is new."""
        path, fresh = self.folder / name, self.folder / f".{name}.rows"
        fresh.unlink(missing_ok=True)
        write(fresh)
        lines = fresh.read_bytes().splitlines(keepends=True)
        if path.exists():
            lines = [line for line in lines if not line.startswith(b"#")]
        with open(path, "ab") as file:
            file.writelines(lines)
        fresh.unlink()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that there is; they are on the disk when this returns."""
        found = {}
        for name in self.names:
            if (self.folder / name).exists():
                with open(self.folder / name, "rb") as file:
                    os.fsync(file.fileno())
                    found[name] = os.fstat(file.fileno()).st_size
        return found

    def cut_back(self, sizes: Mapping[str, int]) -> None:
        """Take every file back to what :meth:`sizes` said; those that it did not name go.

        Raises:
            UserError: a file is missing, or shorter than it was.
        """
        for name in self.names:
            path = self.folder / name
            (self.folder / f".{name}.rows").unlink(missing_ok=True)
            if name not in sizes:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.stat().st_size < sizes[name]:
                raise UserError(f"{path}: shorter than at the last checkpoint; it was altered, start a new run")
            else:
                os.truncate(path, sizes[name])
