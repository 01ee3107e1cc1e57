"""Numbers as people and programs read them, the pictures, and the page."""

import json
import math
import re

import matplotlib
import pytest
import torch

from feynkac.cli.free_energy.numbers import numbers
from feynkac.cli.report import plots
from feynkac.cli.report.html import render
from feynkac.cli.report.style import png
from feynkac.cli.results import Number, as_json
from feynkac.molecular.free_energy import Axis, Region
from feynkac.molecular.pipeline import (
    AnalysisRequest,
    DifferenceRequest,
    SurfaceRequest,
    WeightedDraws,
    analyse,
)


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    n = 3000
    phi, psi = (0.8 * torch.randn(2, n, generator=generator, dtype=torch.float64)).unbind()
    log_weights = 0.5 * torch.cos(phi) + 3
    log_weights[5] = -math.inf
    draws = WeightedDraws(log_weights=log_weights, log_q=phi, energies=psi, variables={"phi": phi, "d": psi}, kT=2.5)
    axes = (Axis.torsion("phi", 20), Axis(name="d", lower=-2, upper=2, bins=12, periodic=False, unit="nm"))
    request = AnalysisRequest(
        surface=SurfaceRequest(axes=axes, bootstrap=20),
        profiles=tuple(SurfaceRequest(axes=(axis,), bootstrap=20) for axis in axes),
        difference=DifferenceRequest(variable="phi", region=Region(0.5, -2.5, 2 * math.pi), bootstrap=50),
        seed=0,
    )
    return draws, request, analyse(draws, request)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Number("a", "A", 20000), "20,000"),
        (Number("a", "A", 0.31415), "0.314"),
        (Number("a", "A", 7112.3), "7,112"),
        (Number("a", "A", 3.8123, 0.0478, "kT"), "3.812 ± 0.048 kT"),
        (Number("a", "A", 38.1, 12.0), "38 ± 12"),
        (Number("a", "A", math.inf, math.nan, "kT"), "inf kT ± unknown"),
        (Number("a", "A", 2e-9, 1e-9), "2.00e-09 ± 1.0e-09"),
        (Number("a", "A", 2e-4, 1e-7), "2.00e-04 ± 1.0e-07"),
        (Number("a", "A", 0.0225, 0.00084), "0.02250 ± 0.00084"),
        (Number("a", "A", 0.0, 0.0), "0.00 ± 0.00"),
        (Number("a", "A", math.nan, None, "standard errors"), "not defined"),
        (Number("a", "A", -0.724, None, "standard errors"), "-0.724 standard errors"),
    ],
)
def test_rounding_follows_the_error(number, text):
    assert number.text == text


def test_numbers_hold_every_estimate(case):
    _, request, analysis = case
    found = {n.key: n for n in numbers(analysis, request.difference, 3000)}
    assert found["delta_f_kJ_mol"].value == pytest.approx(2.5 * found["delta_f_kT"].value)
    assert found["delta_f_kT"].error == analysis.difference.std_error
    assert found["zero_weight"].value == 1
    assert found["log_evidence"].error == analysis.log_evidence_std_error
    content = json.dumps(as_json([*found.values(), Number("x", "X", math.inf, math.nan)], []), allow_nan=False)
    assert json.loads(content)["numbers"]["x"]["value"] == "inf"


def test_pictures_are_drawn_without_touching_global_settings(case):
    draws, request, analysis = case
    before = dict(matplotlib.rcParams)
    pictures = [
        lambda: plots.draw_surface(analysis.surface),
        lambda: plots.draw_profiles(analysis.profiles, request.difference),
        lambda: plots.draw_weights(draws, analysis),
        lambda: plots.draw_running(analysis),
        lambda: plots.draw_density(draws, request.surface.axes),
    ]
    for picture in pictures:
        content = png(picture(), dpi=40)
        assert content.startswith(b"\x89PNG")
        assert content == png(picture(), dpi=40)
    assert dict(matplotlib.rcParams) == before


def test_the_page_needs_nothing_else_and_escapes_text():
    page = render(
        title="a <run>",
        lead="lead",
        cards=[("1", "one")],
        numbers=[Number("x", "X <&>", 1.0, 0.1)],
        pictures={"fes": (b"\x89PNG", "caption", True)},
        warnings=["careful <b>"],
        versions={"torch": "2"},
        config="a: <b>",
        citations=["someone"],
    )
    assert "<run>" not in page
    assert "careful &lt;b&gt;" in page
    assert "data:image/png;base64,iVBORw==" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "1.00 ± 0.10" in page
