"""Files for `feynkac fes`, and a summer of hills that shares no code with the package."""

import itertools
import json
import math
from contextlib import chdir

import numpy as np
import torch
from typer.testing import CliRunner

from feynkac.cli.main import app
from feynkac.molecular.io import HillsTable, write_hills

PI = math.pi
FINITE_SUPPORT = math.sqrt(12.5)


def run(folder, *words, code=0):
    """`feynkac fes` in a folder; what it printed, errors too, on one line each."""
    with chdir(folder):
        result = CliRunner().invoke(app, ["fes", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def numbers(path):
    """Key -> value of the numbers in a JSON file."""
    return {key: row["value"] for key, row in json.loads(path.read_text())["numbers"].items()}


def make_hills(
    names, *, m=25, biasf=5.0, multivariate=False, kernel="stretched-gaussian", clock=None, seed=0, later=0.0
):
    """Hills on ``phi`` and ``psi`` (circles), ``d`` and ``e`` (open) with widths of their own each."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(m, 9, generator=generator, dtype=torch.float64)
    d = len(names)
    circle = [name in ("phi", "psi") for name in names]
    centers = torch.stack([(2 * draw[:, k] - 1) * PI if circle[k] else 2 * draw[:, k] for k in range(d)], dim=1)
    sigmas = 0.25 + 0.25 * draw[:, 3 : 3 + d]
    if multivariate:
        lower = torch.diag_embed(sigmas)
        for i, j in itertools.combinations(range(d), 2):
            lower[:, j, i] = 0.3 * draw[:, 6] - 0.1
        sigmas = lower
    return HillsTable(
        names=tuple(names),
        domains=tuple((-PI, PI) if c else None for c in circle),
        centers=centers,
        sigmas=sigmas,
        heights=0.3 + 1.2 * draw[:, 7],
        biasf=torch.full((m,), biasf, dtype=torch.float64),
        times=later + torch.arange(1, m + 1, dtype=torch.float64),
        kernel=kernel,
        clocks=None if clock is None else torch.full((m,), float(clock), dtype=torch.float64),
    )


def write(path, names, **settings):
    table = make_hills(names, **settings)
    write_hills(path, table)
    return table


def by_hand(path, points, *, rows=slice(None), bias=False, images=(-1, 0, 1)):
    """-F at points (B, d) from the text of a HILLS file; -V with ``bias``."""
    words = [line.split() for line in path.read_text().splitlines()]
    fields = words[0][2:]
    constants = {w[2]: w[3] for w in words if w[:2] == ["#!", "SET"]}
    names = [name for name in fields if f"sigma_{name}" in fields or f"sigma_{name}_{name}" in fields]
    value = {"pi": PI, "-pi": -PI}
    scale, shift = (1.0, 0.0)
    if constants["kerneltype"] == "stretched-gaussian":
        scale = 1.00193418799744762399
        shift = 1.0 - scale
    total = np.zeros(len(points))
    for w in [w for w in words if w[0] != "#!"][rows]:
        row = dict(zip(fields, map(float, w), strict=True))
        lower = np.zeros((len(names), len(names)))
        for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2):
            full = constants["multivariate"] == "true"
            lower[i, j] = row.get(f"sigma_{a}_{b}", 0.0) if full else (row[f"sigma_{a}"] if i == j else 0.0)
        precision = np.linalg.inv(lower @ lower.T)
        height = row["height"]
        if bias and row["biasf"] > 1:
            height *= (row["biasf"] - 1) / row["biasf"]
        away = points - np.array([row[name] for name in names])
        for i, name in enumerate(names):
            if f"min_{name}" in constants:
                period = value[constants[f"max_{name}"]] - value[constants[f"min_{name}"]]
                turned = away[:, i, None] + period * np.array(images)
                away[:, i] = np.take_along_axis(turned, np.abs(turned).argmin(1)[:, None], 1)[:, 0]
        q = 0.5 * np.einsum("bi,ij,bj->b", away, precision, away)
        total += np.where(q < 6.25, height * (scale * np.exp(-q) + shift), 0.0)
    return total


def read_table(path):
    """Columns of a grid file by name, in the order of its rows, and its SET lines.

    Coordinates, which files round to nine decimals, are made exact from the SET lines.
    """
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    fields = lines[0][2:]
    settings = {w[2]: w[3] for w in lines if w[:2] == ["#!", "SET"]}
    data = np.array([[float(x) for x in w] for w in lines if w[0] != "#!"])
    columns = dict(zip(fields, data.T, strict=True))
    every = 1
    for name in (name for name in fields if f"min_{name}" in settings):
        low, high = (number(settings[f"{end}_{name}"]) for end in ("min", "max"))
        count = int(settings[f"nbins_{name}"])
        cells = count if settings[f"periodic_{name}"] == "true" else count - 1
        exact = low + (high - low) / cells * (np.arange(len(data)) // every % count)
        np.testing.assert_allclose(columns[name], exact, rtol=0, atol=1e-9)
        columns[name], every = exact, every * count
    return columns, settings


def number(text):
    """An end of an axis."""
    return {"pi": PI, "-pi": -PI, "2*pi": 2 * PI, "pi/2": PI / 2}.get(text) or float(text)
