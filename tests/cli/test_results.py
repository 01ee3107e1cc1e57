"""Numbers as people and programs read them, the pictures, and the page."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from matplotlib.contour import QuadContourSet

from feynkac.cli.free_energy.numbers import numbers
from feynkac.cli.molecule.plots import profiled
from feynkac.cli.report import plots
from feynkac.cli.report.html import render
from feynkac.cli.report.style import png
from feynkac.cli.report.surface_parts import visible_share
from feynkac.cli.results import Number, as_json, region_text
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


def test_variables_off_their_axis_or_not_finite_cost_themselves_only(case):
    draws, request, whole = case
    assert whole.notes == ()
    values = dict(draws.variables)
    values["q"] = torch.where(torch.arange(3000) % 4 == 0, math.nan, values["d"])
    values["n"] = torch.full_like(values["d"], math.nan)
    narrow = {name: Axis(name=name, lower=-0.5, upper=2.0, bins=5, periodic=False) for name in ("q", "n", "d")}
    far = Axis(name="d", lower=8.0, upper=9.0, bins=5, periodic=False, unit="nm")
    axes = (narrow["q"], narrow["n"], narrow["d"], far, request.surface.axes[0])
    wanted = AnalysisRequest(
        surface=SurfaceRequest(axes=(request.surface.axes[0], far), bootstrap=20),
        profiles=tuple(SurfaceRequest(axes=(axis,), bootstrap=20) for axis in axes),
        difference=DifferenceRequest(variable="q", region=Region(0.0, 9.0), bootstrap=50),
        seed=0,
    )
    found = analyse(replace(draws, variables=values), wanted)
    assert found.surface is None
    assert [profile.axes[0] for profile in found.profiles] == [axes[0], axes[2], axes[4]]
    weights = draws.log_weights.softmax(dim=0)
    known = torch.isfinite(values["q"])
    inside = (weights[known & (values["q"] > 0)].sum() / weights[known].sum()).item()
    assert found.difference.probability == pytest.approx(inside)
    assert found.running.difference[-1].item() == pytest.approx(found.difference.value)
    notes = " / ".join(found.notes)
    missed = float(weights[(values["d"] < -0.5) | (values["d"] > 2.0)].sum())
    assert "q is not finite in 750 of 2,999 samples with a weight" in notes
    assert "the profile of n is left out" in notes
    assert f"{missed:.0%} of the weight lies outside the axis of d, -0.5 to 2: the samples are between" in notes
    assert "no sample with a weight lies inside the axes of phi and d: the surface is left out" in notes
    assert "100% of the weight lies outside the axis of d, 8 to 9 nm" in notes
    none = analyse(
        replace(draws, variables=values), replace(wanted, difference=replace(wanted.difference, variable="n"))
    )
    assert none.difference is None
    assert none.difference_smoothed is None
    assert {number.key for number in numbers(none, wanted.difference, 1)} >= {"ess", "khat"}
    few = {"a": SimpleNamespace(profiles=found.profiles), "b": SimpleNamespace(profiles=found.profiles[1:])}
    assert list(profiled(SimpleNamespace(analyses=few))) == ["d", "phi"]


def test_profiles_stand_in_rows_of_three(case):
    _, request, analysis = case
    for count, shape in ((1, (1, 1)), (3, (1, 3)), (5, (2, 3))):
        drawn = plots.draw_profiles((analysis.profiles * 3)[:count], request.difference)
        panels = [ax for ax in drawn.axes if ax.get_title("left")]
        assert len(panels) == count
        assert panels[0].get_gridspec().get_geometry() == shape
        width, height = drawn.get_size_inches()
        assert (width, height) == pytest.approx((4.1 * shape[1] + 0.5, 3.3 * shape[0]))


def test_a_surface_of_few_samples_has_no_contours_and_says_so(case):
    _, _, analysis = case
    dense = analysis.surface
    thin = replace(dense, ess=torch.where(dense.density > dense.density.max() * 0.5, dense.ess, 1.0))
    assert visible_share(thin) < 0.5 < visible_share(dense)
    for surface, said in ((dense, False), (thin, True)):
        drawn = plots.draw_surface(surface)
        lines = [c for c in drawn.axes[0].collections if isinstance(c, QuadContourSet)]
        assert bool(lines) != said
        assert ("too few samples" in drawn.axes[0].get_title("left")) == said
        assert ("contour" in drawn.axes[1].get_ylabel()) != said


def test_regions_in_words():
    wrapped = DifferenceRequest(variable="phi", region=Region(2.5, -2.5, 2 * math.pi), bootstrap=2, unit="rad")
    assert region_text(wrapped) == "2.5 < phi < -2.5 rad across the seam"
    plain = replace(wrapped, region=Region(0.0, math.pi, 2 * math.pi))
    assert region_text(plain) == "0 < phi < 3.142 rad"
    assert region_text(replace(plain, unit="deg", shown=(0.0, 180.0))) == "0 < phi < 180 deg"


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
