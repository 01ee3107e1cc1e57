"""Who may import whom: cli -> molecular, flows, steering -> fkc -> torch and the standard library."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("fkc", "steering", "molecular", "flows", "cli", "data")
MAY_IMPORT = {
    "fkc": set(),
    "steering": {"fkc"},
    "flows": {"fkc"},
    "molecular": {"fkc"},
    "cli": {"fkc", "steering", "molecular", "flows", "data"},
    "data": set(),
}
# molecular may name the proposal protocol of flows, nothing else sideways
SIDEWAYS = {("molecular", "flows.proposal")}
# third-party libraries that only one room may know
ONLY_IN = {
    "openmm": {"molecular", "cli"},
    "mdtraj": {"molecular"},
    "rdkit": {"molecular", "steering"},  # rewards of molecules
    "ase": {"molecular"},
    "pymbar": {"molecular"},
    "diffusers": {"steering", "molecular"},  # pipelines of images, and of molecules
    "transformers": {"steering"},
    "zuko": {"flows"},
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"cli", "steering"},  # pictures of reports, pictures of a steered run
    "pydantic": {"cli"},
    "yaml": {"cli"},
}
FKC_THIRD_PARTY = {"torch", "safetensors"}  # safetensors in checkpoint.py only


def imports_of(source: str, package: tuple[str, ...]) -> list[str]:
    """Absolute names of everything a module imports; relative imports are resolved against ``package``."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1], *([node.module] if node.module else [])))
            base = base if node.level else str(node.module)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def violations(room: str, module: str, source: str, package: tuple[str, ...]) -> list[str]:
    found = []
    for name in imports_of(source, package):
        parts = name.split(".")
        if parts[0] == "feynkac" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != room:
            sideways = any(r == room and (".".join(parts[1:]) + ".").startswith(t + ".") for r, t in SIDEWAYS)
            sideways = sideways or (room, ".".join(parts[1:])) == ("molecular", "flows")
            if parts[1] not in MAY_IMPORT[room] and not sideways:
                found.append(f"{module} imports {name}")
        elif (parts[0] in ONLY_IN and room not in ONLY_IN[parts[0]]) or (
            room == "fkc" and parts[0] not in {"feynkac", *FKC_THIRD_PARTY} and parts[0] not in sys.stdlib_module_names
        ):
            found.append(f"{module} imports {name}")
    return found


def modules(room: str):
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT / room).parts
        if "_namespace" in parts or "scripts" in parts:
            continue
        yield path, ("feynkac", room, *parts[:-1])


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_imports_point_downwards(room):
    found = []
    for path, package in modules(room):
        found += violations(room, str(path.relative_to(ROOT)), path.read_text(), package)
    assert not found, "\n".join(found)


def test_safetensors_is_known_to_one_module_of_the_core():
    users = [
        path.name
        for path, package in modules("fkc")
        if "safetensors" in " ".join(imports_of(path.read_text(), package))
    ]
    assert users == ["checkpoint.py"]


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("fkc", "from ..flows import proposal"),
        ("fkc", "import numpy"),
        ("flows", "from ..molecular.units import kT"),
        ("flows", "import openmm"),
        ("molecular", "from ..cli import main"),
        ("steering", "from feynkac.flows import load_flow"),
    ],
)
def test_a_wrong_import_would_be_noticed(room, line):
    """Negative controls."""
    assert violations(room, "module.py", line, ("feynkac", room))


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("molecular", "from ..flows.proposal import Proposal"),
        ("cli", "from ..molecular import units"),
        ("flows", "import zuko"),
    ],
)
def test_a_right_import_passes(room, line):
    assert not violations(room, "module.py", line, ("feynkac", room))
