"""Variables from plain data: atoms by selection, references from files, and errors that say what to mend."""

import math
import warnings
from pathlib import Path

import pytest
import torch

from feynkac.molecular.cvs import (
    RMSD,
    VARIABLE_KINDS,
    Cell,
    ContactMap,
    Coordination,
    Distance,
    GyrationRadius,
    Height,
    Lateral,
    NodeDistances,
    PathDistance,
    PathProgress,
    RationalSwitch,
    Superposition,
    TorchScriptVariable,
    Torsion,
    UnknownAtomError,
    Variables,
    build_variable,
    build_variables,
    read_frames,
    select_atom,
    select_atoms,
)

from .molecules import molecule_path

mdtraj = pytest.importorskip("mdtraj")
app = pytest.importorskip("openmm.app")


@pytest.fixture(scope="module")
def topology():
    return app.PDBFile(str(molecule_path("alanine_dipeptide"))).topology


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """A few frames around the structure of the PDB file."""
    start = torch.from_numpy(mdtraj.load(str(molecule_path("alanine_dipeptide"))).xyz).double()
    noise = torch.randn(6, 22, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return start + 0.01 * noise


@pytest.fixture
def movie(tmp_path, frames):
    """The frames as a PDB file of several models."""
    topology = mdtraj.load(str(molecule_path("alanine_dipeptide"))).topology
    path = tmp_path / "movie.pdb"
    mdtraj.Trajectory(frames.numpy(), topology).save_pdb(str(path))
    return path


def test_selections(topology):
    assert select_atom("x", 8, topology) == 8
    assert select_atom("x", "ALA2:CA", topology) == 8
    assert select_atom("x", "resid 1 and name CB", topology) == 10
    assert select_atoms("x", "name CA CB", topology) == (8, 10)
    assert select_atoms("x", ["element O", 8, "ALA2:CB"], topology) == (5, 15, 8, 10)
    assert select_atoms("x", "name CA", mdtraj.Topology.from_openmm(topology)) == (8,)
    assert select_atom("x", "ALA2:CA", mdtraj.Topology.from_openmm(topology)) == 8


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("name C", r"phi: 'name C' must be one atom, but matches 3 atoms"),
        ("name ZZ", r"phi: 'name ZZ' must be one atom, but matches 0 atoms"),
        ("ALA2:CX", r"phi: there is no atom 'ALA2:CX'.*close names: ALA2:C"),
        ("nam CA", r"phi: 'nam CA' is neither an atom such as ALA2:CA nor a selection"),
        ("CA", r"phi: 'CA' is neither an atom such as ALA2:CA nor a selection"),
        (22, r"phi: atom index 22 is past the last of 22 atoms"),
    ],
)
def test_a_single_atom_must_be_one(topology, selection, message):
    with pytest.raises(UnknownAtomError, match=message):
        build_variable("phi", "torsion", [4, 6, selection, 14], topology=topology)


def test_groups_must_not_be_empty_or_repeat(topology):
    with pytest.raises(UnknownAtomError, match="rg: 'name ZZ' matches 0 atoms"):
        build_variable("rg", "gyration", {"atoms": "name ZZ"}, topology=topology)
    with pytest.raises(UnknownAtomError, match="rg: 8 selects atom 8 a second time"):
        build_variable("rg", "gyration", {"atoms": ["name CA", 8]}, topology=topology)
    with pytest.raises(ValueError, match="rg: a group of atoms is empty"):
        build_variable("rg", "gyration", {"atoms": []}, topology=topology)
    with pytest.raises(ValueError, match="rg: atom 'name CA' is given by name, which needs a topology"):
        build_variable("rg", "gyration", {"atoms": "name CA"})


def test_simple_kinds(topology):
    assert build_variable("a", "angle", [4, "ALA2:N", 8], topology=topology).atoms == (4, 6, 8)
    cell = Cell.from_lengths(3.0, 3.0, 5.0)
    assert build_variable("d", "distance", {"atoms": [0, 1], "cell": [3, 3, 5]}) == Distance(0, 1, "d", cell=cell)
    built = build_variable(
        "cn", "coordination", {"group_a": "name N", "group_b": "element O", "r0": 0.3, "m": 10}, topology=topology
    )
    assert built == Coordination((6, 16), (5, 15), RationalSwitch(0.3, m=10), name="cn")
    masses = tuple(a.element.mass._value for a in topology.atoms())
    rg = build_variable("rg", "gyration", {"mass_weighted": True}, topology=topology)
    assert rg == GyrationRadius(tuple(range(22)), masses, name="rg")
    assert masses[8] == pytest.approx(12.01, abs=0.01)
    height = build_variable("h", "height", {"atoms": "name CA", "plane": 0.1, "normal": "x"}, topology=topology)
    assert height == Height((8,), 0.1, "x", name="h")
    lateral = build_variable("x", "lateral", {"atoms": [8], "axis": "a", "cell": [3, 3, 5], "relative_to": 1})
    assert lateral == Lateral((8,), "a", cell, relative_to=(1,), name="x")


def test_the_cell_of_the_structure(topology):
    options = {"atoms": [0, 1], "cell": "structure"}
    with pytest.raises(ValueError, match="d: the structure has no periodic cell"):
        build_variable("d", "distance", options, topology=topology)
    boxed = app.PDBFile(str(molecule_path("alanine_dipeptide"))).topology
    boxed.setPeriodicBoxVectors(((2.0, 0, 0), (0, 2.0, 0), (0, 0, 3.0)))
    assert build_variable("d", "distance", options, topology=boxed).cell == Cell.from_lengths(2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="d: a cell is 3 lengths"):
        build_variable("d", "distance", {"atoms": [0, 1], "cell": [1.0, 2.0]})


def test_rmsd_and_path_from_files(topology, frames, movie, tmp_path):
    pdb = molecule_path("alanine_dipeptide")
    rmsd = build_variable("r", "rmsd", {"reference": pdb, "atoms": "element C N O"}, topology=topology)
    heavy = select_atoms("x", "element C N O", topology)
    trajectory = mdtraj.Trajectory(frames.numpy(), mdtraj.load(str(pdb)).topology)
    expected = torch.from_numpy(mdtraj.rmsd(trajectory, mdtraj.load(str(pdb)), atom_indices=heavy)).double()
    torch.testing.assert_close(rmsd(frames), expected, rtol=0, atol=1e-5)
    read = read_frames("p", movie)
    assert (read - frames).abs().max() < 1e-4
    options = {"reference": movie, "atoms": "element C N O", "lambda": "auto"}
    progress = build_variable("s", "path", options, topology=topology)
    assert progress(read)[0] < progress(read)[-1]
    neighbours = Superposition(read, heavy)(read).diagonal(1).mean()
    assert progress.sharpness == pytest.approx(2.3 / float(neighbours))
    distance = build_variable("z", "path", {**options, "component": "distance", "lambda": 500.0}, topology=topology)
    assert distance.unit == "nm^2"
    assert distance.sharpness == 500.0
    dcd = tmp_path / "movie.dcd"
    trajectory.save_dcd(str(dcd))
    again = build_variable("s", "path", {**options, "reference": dcd, "structure": pdb}, topology=topology)
    torch.testing.assert_close(again(frames), progress(frames), rtol=0.05, atol=0)
    weighted = build_variable("r", "rmsd", {"reference": pdb, "mass_weighted": True, "align": heavy}, topology=topology)
    assert isinstance(weighted, RMSD)
    assert weighted.superposition.align == heavy
    assert len(weighted.superposition.align_weights) == len(heavy)


def test_files_that_do_not_fit(topology, tmp_path, movie):
    with pytest.raises(ValueError, match=r"r: .*chignolin.pdb has 138 atoms, the molecule has 22"):
        build_variable("r", "rmsd", {"reference": molecule_path("chignolin")}, topology=topology)
    with pytest.raises(ValueError, match="r: needs one reference, got 6"):
        build_variable("r", "rmsd", {"reference": movie}, topology=topology)
    with pytest.raises(ValueError, match=r"r: .*none.pdb cannot be read"):
        build_variable("r", "rmsd", {"reference": tmp_path / "none.pdb"}, topology=topology)
    text = molecule_path("alanine_dipeptide").read_text()
    swapped = tmp_path / "swapped.pdb"
    lines = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    swapped.write_text("\n".join([lines[1], lines[0], *lines[2:], "END"]) + "\n")
    with pytest.raises(ValueError, match=r"r: atom 0 of .*swapped.pdb is H .*, in the molecule it is C"):
        build_variable("r", "rmsd", {"reference": swapped}, topology=topology)


def test_contacts_of_a_reference(topology, frames):
    pdb = molecule_path("alanine_dipeptide")
    options = {"atoms": "element C N O", "within": 0.45, "separation": 1, "reference": pdb, "r0": 0.5}
    fraction = build_variable("q", "contact_map", {**options, "normalise": True}, topology=topology)
    assert isinstance(fraction, ContactMap)
    start = read_frames("q", pdb)
    residue = {a.index: a.residue.index for a in topology.atoms()}
    assert all(residue[i] != residue[j] for i, j in fraction.pairs)
    lengths = torch.stack([Distance(i, j)(start) for i, j in fraction.pairs])
    assert lengths.max() <= 0.45
    torch.testing.assert_close(fraction(start), RationalSwitch(0.5)(lengths).mean(0))
    map_distance = build_variable("q", "contact_map", {**options, "mode": "distance"}, topology=topology)
    assert map_distance(start).item() == 0
    assert (map_distance(frames) > 0).all()
    pairs = build_variable("q", "contact_map", {"pairs": [["ALA2:CA", 5], [1, 2]], "r0": 0.5}, topology=topology)
    assert pairs.pairs == ((8, 5), (1, 2))
    with pytest.raises(ValueError, match=r"q: the reference has no contact within 0.001 nm"):
        build_variable("q", "contact_map", {**options, "within": 0.001}, topology=topology)


def test_variables_of_variables(frames, topology):
    entries = {
        "sum": ("linear", {"variables": ["phi", "psi"], "coefficients": [1.0, 1.0], "period": 2 * math.pi}),
        "along": ("path", {"variables": ["phi", "sum"], "nodes": [[-1.0, 0.0], [1.0, 2.0]], "lambda": "auto"}),
        "phi": ("torsion", [4, 6, 8, 14]),
        "psi": ("torsion", [6, 8, 14, 16]),
        "late": ("linear", {"variables": ["given"], "coefficients": [2.0]}),
    }
    built = build_variables(entries, topology=topology, known={"given": Distance(0, 1, "given")})
    assert list(built) == list(entries)
    total = built["phi"](frames) + built["psi"](frames)
    torch.testing.assert_close(torch.cos(built["sum"](frames)), torch.cos(total))
    torch.testing.assert_close(built["late"](frames), 2 * Distance(0, 1)(frames))
    assert built["late"].unit == "nm"
    assert built["along"](frames).shape == (6,)
    circle = {
        "a": ("linear", {"variables": ["b"], "coefficients": [1.0]}),
        "b": ("linear", {"variables": ["a"], "coefficients": [1.0]}),
    }
    with pytest.raises(ValueError, match="a -> b -> a refer to each other in a circle"):
        build_variables(circle)
    with pytest.raises(ValueError, match="s: 'psy' is none of the other variables; there are phi"):
        build_variables({"phi": entries["phi"], "s": ("linear", {"variables": ["psy"], "coefficients": [1.0]})})
    with pytest.raises(ValueError, match=r"nodes must be finite, of shape \(F, 1\)"):
        build_variables(
            {"phi": entries["phi"], "s": ("path", {"variables": ["phi"], "nodes": [[1.0, 2.0]], "lambda": 1.0})}
        )


class Span(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack((x.sum(dim=-1).sum(dim=-1), x[:, 0, 0] - x[:, 1, 0]), dim=1)


def saved(module: torch.nn.Module, example: torch.Tensor, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module, example).save(str(path))
    return str(path)


def test_torchscript_files(tmp_path, frames):
    file = saved(Span(), torch.zeros(2, 2, 3), tmp_path / "span.pt")
    found = build_variable("x", "torchscript", {"file": file, "atoms": [3, 1], "component": 1, "unit": "nm"})
    torch.testing.assert_close(found(frames), frames[:, 3, 0] - frames[:, 1, 0])
    assert found.unit == "nm"
    single = saved(torch.nn.Linear(2, 1), torch.zeros(3, 2), tmp_path / "linear.pt")
    entries = {
        "a": ("distance", [0, 1]),
        "b": ("distance", [1, 2]),
        "net": ("torchscript", {"file": single, "variables": ["a", "b"], "period": 0.1}),
    }
    net = build_variables(entries)["net"]
    values = net(frames)
    assert values.dtype == torch.float64
    assert values.abs().max() <= 0.05
    assert not any(p.requires_grad for p in net.module.parameters())
    with pytest.raises(ValueError, match="x: component 7 is none of the module's 2"):
        build_variable("x", "torchscript", {"file": file, "component": 7})(frames)
    broken = tmp_path / "broken.pt"
    broken.write_text("no archive")
    with pytest.raises(ValueError, match=r"x: .*broken.pt cannot be read as a TorchScript file"):
        TorchScriptVariable(broken, name="x")


class Noisy(torch.nn.Module):
    """With dropout, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 8, dtype=torch.float64)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.tanh(self.layer(x[:, 0]))).sum(dim=-1)


def test_a_module_in_training_is_evaluated_and_stays_as_it_was(frames):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.script(Noisy())
    found = TorchScriptVariable(module, name="net")
    first = found(frames)
    assert torch.equal(first, found(frames))
    assert not torch.equal(module(frames), module(frames))  # negative control: it is a module with noise
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    with torch.no_grad():  # training goes on
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(first, found(frames))
    assert not any(p.requires_grad for p in found.module.parameters())
    forces = Variables([found]).value_and_pullback(frames, torch.ones_like)[1]
    assert forces[:, 0].abs().min() > 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bend", [0, 1, 2], "unknown kind 'bend'; known: torsion, distance, angle, coordination"),
        ("torsion", [0, 1, 2], "a torsion needs 4 atoms, got 3"),
        ("angle", {"atoms": "name CA"}, "an? angle needs 3 atoms, got 'name CA'"),
        ("coordination", {"group_a": [0], "group_b": [1]}, "needs the option 'r0'"),
        ("coordination", {"group_a": [0], "r0": 0.3, "nn": 6}, "has no option 'nn'; it has group_a, r0"),
        ("coordination", {"group_a": [0, 1], "r0": -0.3}, "v: r0 must be a positive length"),
        ("coordination", {"group_a": [0, 1], "r0": 0.3, "n": 6.5}, "v: the exponent n must be a whole number, got 6.5"),
        ("path", {"lambda": 1.0}, "either a reference of several structures, or variables and nodes"),
        ("height", {"atoms": [0]}, "either surface, a group of atoms, or plane"),
        ("height", {"atoms": [0], "plane": 0.0, "normal": "q"}, "the normal is x, y, z, a, b, c or three numbers"),
        ("contact_map", {"r0": 0.3}, "either pairs, or atoms with within and a reference"),
        ("contact_map", {"r0": 0.3, "pairs": [[0, 1]], "mode": "distance"}, "mode distance needs a reference"),
        ("gyration", {}, "v: all atoms needs a topology"),
        ("gyration", {"atoms": [0, 1], "mass_weighted": True}, "v: masses need a topology"),
    ],
)
def test_mistakes_name_the_variable(kind, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_variable("v", kind, options)
    assert str(caught.value).startswith("v: ")


def test_the_kinds():
    assert set(VARIABLE_KINDS) == {
        *("torsion", "distance", "angle", "coordination", "gyration", "rmsd", "path", "linear"),
        *("contact_map", "height", "lateral", "torchscript"),
    }
    assert build_variable("phi", "torsion", [0, 1, 2, 3]) == Torsion(0, 1, 2, 3, name="phi")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("coordination", {"group_a": [0, 1], "r0": "3 A"}, r"cn: r0 must be a number in nm, got '3 A'"),
        ("coordination", {"group_a": [0, 1], "r0": 0.3, "d0": [0.1]}, r"cn: d0 must be a number in nm, got \[0\.1\]"),
        ("coordination", {"group_a": [0, 1], "r0": "auto"}, r"cn: r0 must be a number in nm, got 'auto'"),
        ("coordination", {"group_a": [0, 1], "r0": True}, r"cn: r0 must be a number in nm, got True"),
        ("coordination", {"group_a": [0, 1], "r0": 0.3, "n": "6"}, r"cn: n must be a number, got '6'"),
        ("height", {"atoms": [0], "plane": "5 A"}, r"cn: plane must be a number in nm, got '5 A'"),
        ("path", {"reference": "none.pdb", "lambda": "500 /nm^2"}, r"cn: lambda must be a number or 'auto', got '500 "),
    ],
)
def test_numbers_given_as_text_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_variable("cn", kind, options)


def test_whole_and_numpy_numbers_are_taken():
    np = pytest.importorskip("numpy")
    built = build_variable("cn", "coordination", {"group_a": [0, 1], "r0": np.float32(0.5), "d0": 0, "n": 6.0})
    assert built.switch.r0 == 0.5


def test_printing_shows_sizes_and_no_coordinates(frames):
    near = Superposition(frames, atoms=(0, 2, 4, 6), align=(0, 2, 4))
    assert repr(near) == "Superposition(6 of 22 atoms, atoms=4 atoms, align=3 atoms, name='rmsd')"
    shown = repr(RMSD(Superposition(frames[:1], atoms=(0, 2, 4)), name="dev"))
    assert shown.startswith("RMSD(superposition=Superposition(1 of 22 atoms")
    assert shown.endswith("name='dev')")
    d = Distance(0, 5, name="d")
    path = NodeDistances(Variables([d]), torch.tensor([[0.1], [0.2]]))
    for printed in (near, path, PathProgress(near, 1.0), PathDistance(path, 1.0)):
        assert "tensor" not in repr(printed)
    assert "tensor" in repr(frames)  # negative control


def test_the_examples_of_the_documentation_run():
    text = (Path(__file__).parents[2] / "docs/collective_variables.md").read_text()
    examples = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    names: dict = {}
    for example in examples[:2]:
        exec(example, names)
    assert names["s"].shape == (1000, 5)
    assert isinstance(names["dev"], RMSD)
