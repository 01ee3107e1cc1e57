"""Collective variables of a config: every kind is read, written back and built; mistakes are named with their line."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml

from feynkac.cli.build import build_request, build_variables
from feynkac.cli.errors import UserError
from feynkac.cli.free_energy.config import FreeEnergyConfig
from feynkac.cli.paths import resolve
from feynkac.cli.validation import load_config
from feynkac.molecular.cvs import Cell, Distance, Height, Linear, PathProgress, RationalSwitch, UnknownAtomError

mdtraj = pytest.importorskip("mdtraj")
app = pytest.importorskip("openmm.app")

HEAD = """\
job: free_energy
name: test
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
proposal: {plugin: "somewhere:Proposal"}
sampling: {samples: 100, seed: 1}
analysis:
  variables:
"""
PDB = "data:molecules/alanine_dipeptide.pdb"
KINDS = {
    "phi": '{torsion: ["ACE1:C", "resid 1 and name N", 8, "ALA2:C"]}',
    "psi": "{torsion: [6, 8, 14, 16]}",
    "d": '{distance: ["ALA2:N", 5], range: 2 A .. 0.6 nm}',
    "dp": "{distance: [4, 5], cell: [2 nm, 20 A, 3 nm], range: 0 nm .. 1 nm}",
    "bend": "{angle: [4, 6, 8], range: 0 deg .. 180 deg}",
    "cn": "{coordination: {group_a: element O, group_b: [name N, 8], r0: 3 A, d0: 0 nm, n: 8, m: 12}, range: 0 .. 6}",
    "cn1": "{coordination: {group_a: element O, r0: 3 A}, cell: [2 nm, 2 nm, 3 nm, 90 deg, 90 deg, 120 deg], "
    "range: 0 .. 1}",
    "rg": "{gyration: {mass_weighted: true}, range: 0.1 nm .. 0.5 nm}",
    "dev": f'{{rmsd: {{reference: "{PDB}", atoms: element C N O, align: name CA C N}}, range: 0 nm .. 0.3 nm}}',
    "s": "{path: {reference: movie.pdb, atoms: element C N O, lambda: 500 /nm^2}, range: 1 .. 4}",
    "z": "{path: {reference: movie.pdb, component: distance, lambda: 5 /A^2}, range: -0.01 nm^2 .. 1 A^2}",
    "along": "{path: {variables: [phi, d], nodes: [[-60 deg, 2 A], [1.5 rad, 0.5 nm]], scales: [1 rad, 0.1 nm], "
    "lambda: auto}, range: 1 .. 2}",
    "sum": "{linear: {variables: [phi, psi], coefficients: [1.0, 1.0], period: 360 deg}}",
    "tic": "{linear: {variables: [phi, d], coefficients: [0.5, -1.0, 2.0], means: [0.1, 0, 0.3 nm], expand: true, "
    "offset: 0.5}, range: -3 .. 3}",
    "q": f'{{contact_map: {{atoms: element C N O, within: 4.5 A, separation: 1, reference: "{PDB}", r0: 5 A, '
    "normalise: true}, range: 0 .. 1}",
    "cmd": f'{{contact_map: {{pairs: [[0, "ALA2:CA"], [1, 2]], reference: "{PDB}", r0: 5 A, mode: distance}}, '
    "range: 0 .. 1}",
    "h": "{height: {atoms: element C, surface: [1, 2], normal: c, lowest: 0 nm}, "
    "cell: [[2 nm, 0 nm, 0 nm], [1 nm, 2 nm, 0 nm], [0.5 nm, 0 nm, 3 nm]], range: 0 nm .. 3 nm}",
    "hp": "{height: {atoms: 8, plane: -0.5 nm, normal: [1, 0, 1]}, range: 0 nm .. 3 nm}",
    "x": "{lateral: {atoms: element C, axis: a, relative_to: 1}, cell: [2 nm, 2 nm, 3 nm]}",
    "net": "{torchscript: {file: net.pt, atoms: [3, 1], unit: nm}, range: 0 nm .. 1 nm}",
    "net2": "{torchscript: {file: net2.pt, variables: [d, rg], period: 2 rad, unit: rad}}",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    start = mdtraj.load(str(resolve(PDB, Path())))
    frames = start.xyz[[0] * 4] + 0.02 * torch.randn(4, 22, 3, generator=torch.Generator().manual_seed(1)).numpy()
    mdtraj.Trajectory(frames, start.topology).save_pdb(str(tmp_path / "movie.pdb"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Flatten(1)).save(str(tmp_path / "net.pt"))
        torch.jit.script(torch.nn.Linear(2, 1)).save(str(tmp_path / "net2.pt"))
    return tmp_path


def written(folder: Path, kinds: dict[str, str], more: str = "") -> Path:
    path = folder / "config.yaml"
    path.write_text(HEAD + "".join(f"    {name}: {text}\n" for name, text in kinds.items()) + more)
    return path


@pytest.fixture
def topology():
    return app.PDBFile(str(resolve(PDB, Path()))).topology


@pytest.fixture
def frames():
    start = torch.from_numpy(mdtraj.load(str(resolve(PDB, Path()))).xyz).double()
    return start + 0.01 * torch.randn(5, 22, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_every_kind_is_read_built_and_evaluated(folder, topology, frames):
    config = load_config(written(folder, KINDS), FreeEnergyConfig)
    built = {v.name: v for v in build_variables(config.analysis, topology)}
    assert list(built) == list(KINDS)
    for name, variable in built.items():
        assert torch.isfinite(variable(frames)).all(), name
        known = config.analysis.variables[name].unit
        assert known is None or known == variable.unit, name
        assert config.analysis.variables[name].periodic == (variable.period is not None), name
    assert built["dp"] == Distance(4, 5, "dp", cell=Cell.from_lengths(2.0, 2.0, 3.0))
    assert built["cn"].switch == RationalSwitch(3 * 0.1, 0.0, 8, 12)
    assert built["cn1"].group_b is None
    assert built["z"].sharpness == pytest.approx(500.0)
    assert isinstance(built["along"], PathProgress)
    assert built["along"].distances.nodes[0].tolist() == pytest.approx([-1.0471975512, 0.2])
    assert isinstance(built["tic"], Linear)
    assert built["tic"].means == (0.1, 0.0, 0.3)
    assert isinstance(built["h"], Height)
    assert built["h"].span == pytest.approx(3.0)
    assert built["sum"].period == pytest.approx(6.283185307)


def test_the_files_of_a_variable_are_known(folder):
    variables = load_config(written(folder, KINDS), FreeEnergyConfig).analysis.variables
    assert variables["s"].files == {"reference": (folder / "movie.pdb").resolve()}
    assert variables["net"].files == {"file": (folder / "net.pt").resolve()}
    assert variables["dev"].files == {"reference": resolve(PDB, Path())}
    assert variables["phi"].files == variables["sum"].files == {}


def test_a_resolved_config_reads_back_the_same(folder, tmp_path_factory):
    config = load_config(written(folder, KINDS), FreeEnergyConfig)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "config.yaml"
    elsewhere.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False))
    assert load_config(elsewhere, FreeEnergyConfig) == config


@pytest.mark.parametrize("name", [n for n, text in KINDS.items() if "range" in text])
def test_an_axis_of_an_open_kind_needs_a_range_and_takes_one(folder, topology, name):
    surface = f"  profiles: [{name}]\n"
    request = build_request(*_config_and_variables(folder, topology, surface), seed=1)
    axis = request.profiles[0].axes[0]
    span = load_config(folder / "config.yaml", FreeEnergyConfig).analysis.variables[name].range
    assert (axis.lower, axis.upper, axis.periodic) == (span.lower, span.upper, False)
    without = KINDS | {name: KINDS[name].rsplit(", range", 1)[0] + "}"}
    with pytest.raises(UserError, match=f"{name} needs a range for its axis, such as range: "):
        load_config(written(folder, without, surface), FreeEnergyConfig)


def _config_and_variables(folder, topology, more):
    analysis = load_config(written(folder, KINDS, more), FreeEnergyConfig).analysis
    return analysis, build_variables(analysis, topology)


@pytest.mark.parametrize("name", ["phi", "sum", "x", "net2"])
def test_periodic_kinds_take_no_range(folder, name):
    kinds = KINDS | {name: KINDS[name].removesuffix("}") + ", range: 0 rad .. 1 rad}"}
    with pytest.raises(UserError, match=f"analysis.variables.{name}: a .* covers the whole circle and takes no range"):
        load_config(written(folder, kinds), FreeEnergyConfig)


def test_regions_and_bandwidths_without_a_unit(folder, topology):
    more = "  difference: {variable: cn, region: 1 .. 3}\n"
    more += "  surface: {variables: [cn, d], bins: [4, 5], method: kde, bandwidth: [0.1, 0.02 nm]}\n"
    analysis, variables = _config_and_variables(folder, topology, more)
    request = build_request(analysis, variables, seed=1)
    assert request.surface.bandwidth == (0.1, 0.02)
    assert (request.difference.region.lower, request.difference.region.upper) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("name", "old", "new", "parts"),
    [
        ("phi", "torsion: [", "torsion: [1, ", ["phi.torsion", "at most 4 entries"]),
        ("bend", "angle", "angles", ["bend.angles: unknown key", "did you mean 'angle'"]),
        ("bend", "0 deg .. 180 deg", "0 .. 3", ["variables.bend", "in the unit of the variable"]),
        ("bend", "range", "distance: [1, 2], range", ["variables.bend", "exactly one of torsion: [4 atoms]"]),
        ("bend", "range", "cell: [1 nm, 1 nm, 1 nm], range", ["a angle takes no cell; these do: distance"]),
        ("cn", "0 .. 6", "0 nm .. 6 nm", ["variables.cn", "such as range: 0 .. 10"]),
        ("cn", "r0: 3 A, ", "", ["coordination.r0: this key is missing"]),
        ("cn", "r0: 3 A", "r0: 0.3", ["coordination.r0 = 0.3", "the unit is missing"]),
        ("cn", "n: 8", "n: 12", ["the exponents need n < m"]),
        ("cn", "n: 8", "nn: 8", ["coordination.nn: unknown key", "did you mean 'n'"]),
        ("cn", "d0: 0 nm", "d0: -1 nm", ["coordination.d0 = '-1 nm'", "must be 0 or more"]),
        ("dp", "[2 nm, 20 A, 3 nm]", "[2 nm, 3 nm]", ["dp.cell", "three lengths [3 nm, 3 nm, 5 nm]"]),
        ("dp", "20 A", "20 deg", ["dp.cell", "wrong unit 'deg'"]),
        ("dev", "alanine_dipeptide.pdb", "alanin.pdb", ["rmsd.reference", "did you mean"]),
        ("s", "500 /nm^2", "500", ["variables.s.path", "500 /nm^2 for structures"]),
        ("s", "500 /nm^2", "-500 /nm^2", ["path.lambda = '-500 /nm^2'", "lambda must be positive"]),
        ("s", "lambda: 500 /nm^2", "component: progress", ["s.path.lambda: this key is missing"]),
        ("s", "movie.pdb", "film.pdb", ["s.path.reference", "there is no"]),
        ("along", "[-60 deg, 2 A]", "[-60 deg]", ["along.path", "a value for each of the 2 variables"]),
        ("along", "2 A", "2 deg", ["path.nodes[0][1]", "d is measured in nm"]),
        ("along", "scales: [1 rad", "scales: [1", ["path.scales[0]", "phi is measured in rad"]),
        ("along", "-60 deg", "-60", ["path.nodes[0][0] = -60", "phi is measured in rad"]),
        ("tic", "[0.5, -1.0, 2.0]", "[]", ["linear.coefficients = []", "at least 1 entries"]),
        ("q", "within: 4.5 A, ", "", ["q.contact_map", "need within: 0.45 nm and reference: FILE"]),
        ("h", "surface: [1, 2]", "surface: [1, 2], plane: 1 nm", ["h.height", "either surface: ATOMS or plane"]),
        ("x", ", cell: [2 nm, 2 nm, 3 nm]", "", ["variables.x", "lateral needs a cell"]),
        ("x", "axis: a", "axis: x", ["lateral.axis", "expected a or b or c"]),
        ("net", "net.pt", "nought.pt", ["torchscript.file", "there is no"]),
        ("net", "atoms: [3, 1]", "atoms: [3, 1], variables: [d]", ["atoms are for modules that take positions"]),
    ],
)
def test_mistakes_are_named(folder, name, old, new, parts):
    assert old in KINDS[name]
    path = written(folder, KINDS | {name: KINDS[name].replace(old, new, 1)})
    with pytest.raises(UserError) as caught:
        load_config(path, FreeEnergyConfig)
    line = 1 + len(HEAD.splitlines()) + list(KINDS).index(name)
    found = str(caught.value).splitlines()
    assert any(all(part in text for part in parts) and f"line {line}:" in text for text in found), found


@pytest.mark.parametrize(
    ("name", "old", "new", "error", "message"),
    [
        ("cn", "element O", "element Zn", UnknownAtomError, "cn: 'element Zn' matches 0 atoms"),
        ("bend", "[4, 6, 8]", "[4, 6, name H]", UnknownAtomError, "bend: 'name H' must be one atom"),
        ("bend", "[4, 6, 8]", "[4, 6, 4]", UserError, "analysis.variables: bend: an atom appears twice"),
        ("sum", "[phi, psi]", "[phi, chi]", UserError, "sum: 'chi' is none of the other variables"),
        ("tic", "[0.5, -1.0, 2.0]", "[0.5, -1.0]", UserError, "tic: 3 coefficients are needed"),
        ("dp", "[2 nm, 20 A, 3 nm]", "structure", UserError, "dp: the structure has no periodic cell"),
        ("net", "net.pt", "movie.pdb", UserError, "net: .*movie.pdb cannot be read as a TorchScript file"),
    ],
)
def test_what_only_the_molecule_can_tell(folder, topology, name, old, new, error, message):
    assert old in KINDS[name]
    config = load_config(written(folder, KINDS | {name: KINDS[name].replace(old, new, 1)}), FreeEnergyConfig)
    with pytest.raises(error, match=message):
        build_variables(config.analysis, topology)
