"""The command line in this process and in one that is killed, and what its runs leave."""

import os
import signal
import subprocess
import sys

import numpy as np
from typer.testing import CliRunner

from feynkac.cli.main import app

MAIN = "from feynkac.cli.main import main; main()"


def call(*words):
    """The command's result."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def succeed(*words):
    """What a command prints that ends well."""
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def complaint(*words):
    """What a refused command prints on stderr."""
    result = call(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


def killed(*words, code=MAIN, **environment):
    """A command in a process of its own, which must end by SIGKILL; ``code`` is its Python."""
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr


def arrays(path):
    """Arrays of an ``.npz``, by name."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def same(first, second):
    """Whether two dicts of arrays have the same bits."""
    return first.keys() == second.keys() and all(
        np.array_equal(value, second[name], equal_nan=value.dtype.kind == "f") for name, value in first.items()
    )
