"""The example of the docs runs, and says what the docs say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "steer_digits.py"


@pytest.mark.slow
def test_the_example_runs_and_its_ways_agree(tmp_path):
    picture = tmp_path / "digits.png"
    command = [sys.executable, str(EXAMPLE), "--populations", "2", "--output", str(picture)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={"OMP_NUM_THREADS": "1", "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 20_000
    lines = [line for line in done.stdout.splitlines() if "log Z" in line]
    assert len(lines) == 9
    evidences = [float(re.search(r"log Z\s+(-?[\d.]+)", line).group(1)) for line in lines]
    for first in range(0, 9, 3):  # three ways, one target
        assert max(evidences[first : first + 3]) - min(evidences[first : first + 3]) < 4.0
    assert all("denoiser 1600" in line for line in lines)  # at equal cost
