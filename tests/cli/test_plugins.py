"""Plugins by entry point and by path; what is missing is named."""

from importlib.metadata import EntryPoint

import pytest
from rich.console import Console

from feynkac.cli import plugins as module
from feynkac.cli.commands.plugins import plugins
from feynkac.cli.errors import UserError
from feynkac.cli.plugins import GROUPS, installed, load_plugin
from feynkac.fkc import plugins as lookup
from feynkac.molecular.cvs import Distance


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
