"""The folder of a run: created once, never overwritten, complete or resumable at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from .errors import UserError
from .validation import PROVENANCE
from .yaml_lines import load_yaml

__all__ = ["RunFolder", "provenance"]

_HEADER = """\
# Resolved config of this run. `feynkac resume FOLDER` goes on with it, `feynkac report FOLDER` draws it again,
# and the command that made it, given FOLDER/config.yaml and --output OTHER, repeats it.
"""
_RESULTS, _CONFIG, _METRICS, _STAGE = "results.json", "config.yaml", "metrics.jsonl", ".writing"


class RunFolder:
    """Paths of a run, and the order in which they appear.

    ``config.yaml`` first; ``checkpoint/`` and ``metrics.jsonl`` grow; then the results are written aside and moved
    into place, ``results.json`` last: the run is complete when it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: BaseModel, inputs: Mapping[str, Path]) -> RunFolder:
        """Make the folder and write its config.

        Raises:
            FileExistsError: if anything is at ``path``; nothing is touched.
        """
        cls.refuse_existing(path)
        path.mkdir(parents=True)
        data = config.model_dump(mode="json", exclude_none=True)
        data[PROVENANCE] = provenance(inputs)
        text = _HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)
        (path / _CONFIG).write_text(text, encoding="utf-8")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
            UserError: if there is none.
        """
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder")
        if not (path / _CONFIG).is_file():
            raise UserError(f"{path}: not the folder of a run, it has no {_CONFIG}")
        return cls(path)

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raises FileExistsError if anything is at ``path``."""
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} exists already; runs never overwrite: choose another --output")

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / _CONFIG

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint."""
        return self.path / "checkpoint"

    @property
    def metrics(self) -> Path:
        """A line of JSON for each chunk."""
        return self.path / _METRICS

    @property
    def complete(self) -> bool:
        """Whether all results were written."""
        return (self.path / _RESULTS).is_file()

    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds.

        Raises:
            UserError: if the run is not complete, or the file is damaged.
        """
        if not self.complete:
            raise UserError(f"{self.path}: the run is not complete; go on with: feynkac resume {self.path}")
        try:
            content: dict[str, Any] = json.loads((self.path / _RESULTS).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.path / _RESULTS}: damaged: {error}") from error
        return content

    def finished_file(self, name: str) -> Path:
        """Path of a file that a complete run has.

        Raises:
            UserError: if it is missing.
        """
        path = self.path / name
        if not path.is_file():
            raise UserError(f"{path}: missing, although the run is complete")
        return path

    def recorded(self) -> dict[str, Any]:
        """The provenance section of the config."""
        section = load_yaml(self.config).data.get(PROVENANCE)
        return section if isinstance(section, dict) else {}

    def check_inputs(self, inputs: Mapping[str, Path]) -> None:
        """Refuse to go on with a structure or a proposal other than at the start.

        Raises:
            UserError: naming what has changed.
        """
        before = self.recorded().get("sha256", {})
        changed = [name for name, path in inputs.items() if before.get(name) != _sha256(path)]
        if changed:
            raise UserError(f"{self.path}: {', '.join(changed)} changed since the run was started; start a new run")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool] = lambda record: True) -> int:
        """Drop the half line that a killed run may have left in ``metrics.jsonl``; returns the whole ones.

        Args:
            wanted: of a line's record; lines of work that is done again go too.
        """
        if not self.metrics.is_file():
            return 0
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if wanted(record):
                kept.append(line + "\n")
        _replace(self.metrics, "".join(kept).encode())
        return len(kept)

    @contextlib.contextmanager
    def results_stage(self, results: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """A folder to write results to; on success all of it moves into place, then ``results.json`` is written."""
        stage = self.path / _STAGE
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        yield stage
        for part in sorted(stage.iterdir()):
            target = self.path / part.name
            if target.is_dir():
                shutil.rmtree(target)  # left by a run killed at this very place
            os.replace(part, target)
        stage.rmdir()
        if results is not None:
            _replace(self.path / _RESULTS, (json.dumps(dict(results), indent=2) + "\n").encode())


def provenance(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Versions, device and hashes of the input files: what is needed to repeat a run."""
    versions = {"python": platform.python_version()}
    for name in ("feynkac", "torch", "numpy", "openmm", "mdtraj", "zuko", "diffusers", "transformers", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return {
        "versions": versions,
        "platform": platform.platform(),
        "device": device,
        "torch_threads": torch.get_num_threads(),
        "sha256": {name: _sha256(path) for name, path in inputs.items()},
    }


def _sha256(path: Path) -> str:
    """Hash of a file, or of the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes())
    elif path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
