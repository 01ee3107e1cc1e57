"""Plugins by entry point and by path; what is missing is named."""

import math
from importlib.metadata import EntryPoint

import pytest
import torch
from rich.console import Console

from feynkac.cli import plugins as module
from feynkac.cli.build import build_variables, try_variables
from feynkac.cli.commands.plugins import plugins
from feynkac.cli.config import AnalysisConfig
from feynkac.cli.errors import UserError
from feynkac.cli.plugins import GROUPS, call_plugin, installed, load_plugin
from feynkac.cli.variable_config import VariableConfig
from feynkac.fkc import plugins as lookup
from feynkac.molecular.cvs import CallableVariable, Distance


@pytest.fixture
def entry_point(monkeypatch):
    points = [
        EntryPoint("end_to_end", "feynkac.molecular.cvs:Distance", "feynkac.cvs"),
        EntryPoint("broken", "nowhere_at_all:Thing", "feynkac.cvs"),
    ]
    for where in (module, lookup):
        monkeypatch.setattr(where, "entry_points", lambda group: [p for p in points if p.group == group])


def test_by_entry_point_and_by_path(entry_point):
    assert load_plugin("feynkac.cvs", "end_to_end") is Distance
    assert load_plugin("feynkac.cvs", "feynkac.molecular.cvs:Distance") is Distance


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("end_to_ent", "did you mean 'end_to_end'"),
        ("broken", "cannot be imported"),
        ("nowhere_at_all:Thing", "'nowhere_at_all' cannot be imported"),
        ("feynkac.molecular.cvs:Thing", "has no 'Thing'"),
    ],
)
def test_what_is_missing_is_named(entry_point, name, message):
    with pytest.raises(UserError, match=message):
        load_plugin("feynkac.cvs", name)


def test_without_any_plugin():
    with pytest.raises(UserError, match="none installed"):
        load_plugin("feynkac.proposals", "dream")


def test_they_are_listed(entry_point):
    assert [p.name for p in installed()] == ["broken", "end_to_end"]
    console = Console(record=True, width=120)
    plugins(console)
    text = console.export_text()
    assert all(group in text for group in GROUPS)
    assert "end_to_end" in text
    assert "feynkac.molecular.cvs:Distance" in text


def test_what_a_plugin_must_be_is_said():
    def values(positions):
        return positions

    expected = r"factory\(name=..., \*\*options\) -> molecular.cvs.CollectiveVariable"
    with pytest.raises(UserError, match=rf"does not accept its options: .*'positions'; expected {expected}"):
        call_plugin("feynkac.cvs", values, "plug:values", name="q")
    with pytest.raises(UserError, match=rf"is a int, which cannot be called; expected {expected}"):
        call_plugin("feynkac.cvs", 3, "plug:values", name="q")
    assert call_plugin("feynkac.cvs", values, "plug:values", positions=3) == 3


def test_a_plugin_must_make_a_variable(tmp_path, monkeypatch):
    (tmp_path / "made_for_tests.py").write_text("def number(name):\n    return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = AnalysisConfig(variables={"q": VariableConfig(plugin="made_for_tests:number")})
    with pytest.raises(UserError, match=r"made a int, expected factory\(name=...,"):
        build_variables(config, None)


@pytest.mark.parametrize(
    ("function", "steering", "said"),
    [
        (lambda x: x[:, 0, 0], ("q",), None),
        (lambda x: x[:, 0, 0].detach(), (), None),
        (lambda x: x[:, 0, 0].detach(), ("q",), "the values do not follow the positions"),
        (lambda x: x[:, 0, 0] * math.nan, (), None),
        (lambda x: x[:, 0, 0] * math.nan, ("q",), "is nan on the structure"),
        (lambda x: x[:, 0], (), r"expected values of shape \(2,\), got \(2, 3\)"),
        (lambda x: x[0, 0, 0], (), r"expected values of shape \(2,\), got \(\)"),
        (lambda x: x[:, 99, 0], (), "the function failed: IndexError"),
    ],
)
def test_variables_are_tried_on_the_structure(function, steering, said):
    variables = [CallableVariable(function, "q", "nm")]
    positions = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if said is None:
        try_variables(variables, positions, where="variables", steering=steering)
        return
    with pytest.raises(UserError, match=rf"^variables\.q: .*{said}"):
        try_variables(variables, positions, where="variables", steering=steering)
