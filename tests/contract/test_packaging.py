"""The list of packages is the folders on disk, and the built wheel holds `feynkac` and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ALLOWED_AT_TOP = {"fkc", "steering", "molecular", "flows", "cli", "tests", "data", "docs"}


def packages_on_disk(root: Path) -> set[str]:
    """Dotted names of every folder with an ``__init__.py``, by the mapping of pyproject.toml."""
    found = set()
    for package, folder in CONFIG["package-dir"].items():
        base = root / folder
        for init in base.rglob("__init__.py"):
            parts = init.parent.relative_to(base).parts
            if package == "feynkac.fkc" and parts[:1] == ("_namespace",):
                continue  # mapped on its own, as the root package
            found.add(".".join((package, *parts)))
    return found


def test_the_list_of_packages_is_the_folders_on_disk():
    assert packages_on_disk(ROOT) == set(CONFIG["packages"])


def test_a_forgotten_package_would_be_noticed(tmp_path):
    """Negative control of the test above."""
    for folder in {f.split("/")[0] for f in CONFIG["package-dir"].values()}:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fkc" / "new").mkdir()
    (tmp_path / "fkc" / "new" / "__init__.py").touch()
    assert packages_on_disk(tmp_path) - set(CONFIG["packages"]) == {"feynkac.fkc.new"}


def test_only_the_agreed_folders_stand_at_the_top():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("not a git checkout: the top-level folders cannot be listed")
    folders = {line.split("/")[0] for line in tracked if "/" in line}
    assert {f for f in folders if not f.startswith(".")} <= ALLOWED_AT_TOP


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel built from a clean copy (a stale build/ folder would bring back deleted modules)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("feynkac-*.whl")))


def test_the_wheel_holds_only_feynkac(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"feynkac"}


def test_the_wheel_holds_every_module_and_the_data(wheel):
    names = set(wheel.namelist())
    for package, folder in CONFIG["package-dir"].items():
        for module in (ROOT / folder).rglob("*.py"):
            parts = module.relative_to(ROOT / folder).parts
            if parts[0] in ("_namespace", "scripts"):
                continue
            assert "/".join((*package.split("."), *parts)) in names
    assert "feynkac/py.typed" in names
    assert "feynkac/molecular/energies/forcefield.cpp" in names
    for kind in ("*.pdb", "*.yaml", "*.safetensors", "*.json"):
        for file in (ROOT / "data").rglob(kind):
            assert f"feynkac/data/{file.relative_to(ROOT / 'data').as_posix()}" in names
    assert not any("scripts/" in name for name in names)
