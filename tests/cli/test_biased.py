"""Biased dynamics: the config, what it stands for, growing files and running numbers."""

import math
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("openmm")

from feynkac.cli.biased.bias import asked_nodes
from feynkac.cli.biased.build import Setup, _threads_that_pay
from feynkac.cli.biased.config import MetadynamicsConfig
from feynkac.cli.biased.files import GrowingFiles
from feynkac.cli.biased.interrupt import interrupt_between_records
from feynkac.cli.biased.job import BiasedJob
from feynkac.cli.biased.numbers import doubts_of
from feynkac.cli.biased.results import _from_bias, _groups
from feynkac.cli.biased.rows import _stride
from feynkac.cli.biased.watch import Watch, cores, outside_grid
from feynkac.cli.errors import UserError
from feynkac.cli.paths import resolve
from feynkac.cli.results import region_text
from feynkac.cli.validation import load_config
from feynkac.fkc.bias import BiasVariable, GridAxis, Harmonic, OpesBias, RepulsionBias, UpperWall, WellTemperedBias
from feynkac.fkc.weights import effective_sample_size
from feynkac.molecular.dynamics import Record, Staged
from feynkac.molecular.free_energy import Region, count_crossings
from feynkac.molecular.io import write_hills
from feynkac.molecular.io.hills import HillsTable
from feynkac.molecular.pipeline import DifferenceRequest

from .biased_runs import CONFIG, OPES
from .command import call, complaint

SHIPPED = ("metad_alanine_dipeptide", "opes_alanine_dipeptide", "metad_tetrapeptide")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(text, folder, name="metad.yaml"):
    (folder / name).write_text(text)
    return Setup.build(load_config(folder / name, MetadynamicsConfig))


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_can_be_built(name):
    setup = Setup.build(load_config(resolve(f"data:configs/{name}.yaml", Path()), MetadynamicsConfig))
    assert setup.settings.walkers >= 100
    assert setup.config.dynamics.burn_in > 0
    assert isinstance(setup.bias, OpesBias if name.startswith("opes") else WellTemperedBias)
    assert setup.bias.grid_axes is not None


PSI = "psi: {sigma: 0.3 rad}"
DIFFERENCE = "{variable: phi, region: -1.5 rad .. 0 rad, bootstrap: 10}"
WRONG = [
    ("phi: {sigma: 0.3 rad}", "phi: {sigma: 0.3}", "bias.variables.phi.sigma", "measured in rad"),
    ("phi: {sigma: 0.3 rad}", "phi: {sigma: 0.3 nm}", "bias.variables.phi.sigma", "measured in rad"),
    ("phi: {sigma: 0.3 rad}", "phi: {sigma: 0.3 rad, bin: 50}", "bias.variables.phi.bin", "did you mean 'bins'?"),
    ("psi: {sigma: 0.3 rad}", "chi: {sigma: 0.3 rad}", "bias.variables.chi", "'chi' is none of the variables"),
    (PSI, "psi: {sigma: 80 deg}", "bias.variables.psi.sigma = '80 deg'", "more than a seventh of the period"),
    (PSI, "psi: {sigma: 1.3 rad}", "bias.variables.psi.sigma", "expected at most 51 deg"),
    (PSI, "psi: {sigma: 17}", "bias.variables.psi.sigma = 17", "expected such as 0.3 rad"),
    (PSI, "psi: {sigma: 0.3 rad, range: 0 deg .. 90 deg}", "bias.variables.psi.range", "psi has a period"),
    (PSI, "d: {sigma: 0.1 A, range: 9 A .. 2 A}", "bias.variables.d.range", "from its lower to its upper end"),
    (DIFFERENCE, "{variable: phi, region: -180 deg .. 180 deg}", "analysis.difference.region", "is the whole circle"),
    (
        "variable: d, at: 0.4 nm, stiffness: 5 kJ/mol, scale: 0.05 nm",
        "variable: psi, at: 90 deg, stiffness: 5 kJ/mol, scale: 10 deg",
        "restraints.tether.kind",
        "use kind: flat_bottom",
    ),
    (
        "bias_factor: 10",
        "start_from: HILLS",
        "bias.start_from = 'HILLS'",
        "expected a list, such as start_from: [HILLS]",
    ),
    ("height: 20 kJ/mol", "height: 20", "bias.height = 20", "the unit is missing"),
    ("height: 20 kJ/mol", "hight: 20 kJ/mol", "bias.hight", "did you mean 'height'?"),
    ("height: 20 kJ/mol", "barrier: 20 kJ/mol", "bias.barrier", "is not for kind well_tempered"),
    ("bias_factor: 10", "bias_factor: 1", "bias.bias_factor = 1", "greater than 1"),
    ("kind: well_tempered", "kind: well-tempered", "bias.kind", "did you mean 'well_tempered'?"),
    ("kind: upper_wall", "kind: harmonic, exponent: 2", "restraints.tether.exponent", "is for walls"),
    ("kind: upper_wall", "kind: flat_bottom", "restraints.tether.half_width", "this key is missing"),
    ("variable: d, at", "variable: e, at", "restraints.tether.variable", "'e' is none of the variables"),
    ("at: 0.4 nm", "at: 0.4 rad", "restraints.tether.at", "measured in nm"),
    ("scale: 0.05 nm}", "scale: 0.05}", "restraints.tether.scale", "measured in nm"),
    ("record: 0.02 ps", "record: 0.1 ps", "dynamics.production", "fewer than 20 records"),
    ("record: 0.02 ps", "record: 1 fs", "dynamics.record", "shorter than the time step"),
    ("fill: 0.1 ps", "fill: 8 fs", "dynamics.fill", "before the first deposit"),
    ("fill: 0.1 ps", "fill: -1 ps", "dynamics.fill", "must not be negative"),
    ("production: 0.4 ps", "production: 0 ps", "dynamics.production", "must be positive"),
    (PSI, "d: {sigma: 0.31 nm, range: 0.2 nm .. 0.8 nm}", "bias.variables.d.sigma", "0.52 of the variable's range"),
    (DIFFERENCE, "{variable: d, region: 0.6 nm .. 0.7 nm}", "analysis.difference.region", "outside the range of d"),
    ("fill: 0.1 ps", "fill: 0.1 nm", "dynamics.fill", "wrong unit 'nm'"),
    ("walkers: 6", "walkers: 0", "dynamics.walkers", "greater than 0"),
    ("burn_in: 0.04 ps", "pace: 5", "'pace'", "is given twice"),
    ("region: -1.5 rad .. 0 rad", "region: -1.5 nm .. 0 nm", "analysis.difference.region", "measured in rad"),
    ("profiles: [phi, d]", "profiles: [phi, e]", "analysis:", "'e' is none of the variables"),
]


ELSEWHERE = {"dynamics.production": "production: ", "analysis:": "analysis:"}
"""What stands in the line that is named, where it is not the one with the mistake."""


@pytest.mark.parametrize(("good", "bad", "field", "said"), WRONG)
def test_a_wrong_config_is_explained_with_field_and_line(workplace, good, bad, field, said):
    text = CONFIG.replace(good, bad)
    assert text != CONFIG
    (workplace / "metad.yaml").write_text(text)
    found = complaint("run", "metad.yaml", "-o", "out")
    rows = [k for k, row in enumerate(text.splitlines(), start=1) if ELSEWHERE.get(field, bad) in row]
    assert f"metad.yaml, line {rows[-1]}: " in found
    assert field in found
    assert said in found
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OPES.replace("barrier: 40 kJ/mol", "barrier: 1 kJ/mol"),
         "line 17: bias.barrier = '1 kJ/mol': expected more than kT, 2.49 kJ/mol at 300 K"),
        (CONFIG.replace(PSI, "e: {sigma: 0.02 nm}").replace("  d: {", "  e: {distance: [4, 10]}\n  d: {"),
         "bias.variables.e: has no period, so it needs a range for the grid of the bias"),
        (CONFIG.replace("phi: {torsion: [4, 6, 8, 14]}", "phi: {torsion: [4, 6, 8, 99]}"), "99"),
        (CONFIG + "reference: data:molecules/alanine_dipeptide.pdb\n", "reference = 'data:molecules"),
        (CONFIG.replace("temperature: 300 K", "temperature: 310 K")
         + "reference: data:references/alanine_dipeptide_300K.json\n", "is of 300 K, not of 310 K"),
        (CONFIG.replace("burn_in: 0.04 ps", "burn_in: 2 fs"), "dynamics: burn_in_ps"),
        (CONFIG.replace("  kind: well", "  start_from: [nowhere]\n  kind: well"), "bias.start_from"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_explained_before_anything_is_made(workplace, text, said):
    (workplace / "metad.yaml").write_text(text)
    assert said in complaint("run", "metad.yaml", "-o", "out")
    assert not (workplace / "out").exists()


def test_what_a_config_stands_for(workplace):
    setup = build(CONFIG, workplace)
    assert setup.bias.names == ("phi", "psi")
    assert [v.name for v in setup.variables] == ["phi", "psi", "d"]
    assert [v.name for v in setup.others] == ["d"]
    assert (setup.settings.deposits, setup.settings.burn_in_records, setup.settings.records) == (10, 2, 20)
    wall = setup.restraints[0].wall
    assert wall == UpperWall(0.4, 5.0, 2.0, 0.05)
    assert float(wall.value_and_gradient(torch.tensor([0.45]))[0]) == pytest.approx(5.0, rel=1e-5)  # one scale beyond
    with pytest.raises(UserError, match="bias"):
        build(CONFIG.replace("height: 20 kJ/mol", "height: 20 kJ/mol\n  compression: 1\n").replace(
            "phi: {sigma: 0.3 rad}", "phi: {sigma: 0.3 rad, bins: 50}"), workplace)  # fmt: skip


def test_a_restraint_is_half_its_stiffness_one_scale_away(workplace):
    text = "kind: harmonic, variable: phi, at: 90 deg, stiffness: 6 kJ/mol, scale: 0.5 rad"
    kept = "kind: upper_wall, variable: d, at: 0.4 nm, stiffness: 5 kJ/mol, scale: 0.05 nm"
    wall = build(CONFIG.replace(kept, text), workplace).restraints[0].wall
    assert isinstance(wall, Harmonic)
    assert wall.period == pytest.approx(2 * math.pi)
    at = torch.tensor([math.pi / 2 + 0.5, math.pi / 2 + 0.5 - 2 * math.pi], dtype=torch.float64)
    assert wall.value_and_gradient(at)[0].tolist() == pytest.approx([3.0, 3.0])


def test_grids_are_as_asked_for(workplace):
    merged = CONFIG.replace("psi: {sigma: 0.3 rad}", "d: {sigma: 0.02 nm}").replace(
        "bias_factor", "compression: 0.5\n  bias_factor"
    )
    setup = build(merged, workplace)
    assert setup.bias.grid_axes is None
    assert 0.2 <= float(setup.method.rct_points[:, 1].min()) < float(setup.method.rct_points[:, 1].max()) <= 0.6
    asked = CONFIG.replace("phi: {sigma: 0.3 rad}", "phi: {sigma: 0.3 rad, bins: 50}").replace(
        "psi: {sigma: 0.3 rad}", "d: {sigma: 0.02 nm, range: 0.1 nm .. 0.9 nm}"
    )
    phi, d = build(asked, workplace).bias.grid_axes
    assert (phi.bins, phi.periodic) == (50, True)
    assert (d.lower, d.upper, d.bins, d.periodic) == (0.1, 0.9, 200, False)
    torsions = ", ".join(f"t{k}" for k in range(4))
    many = CONFIG.replace(
        "  phi: {torsion: [4, 6, 8, 14]}",
        "\n".join(f"  t{k}: {{torsion: [4, 6, 8, 14]}}" for k in range(4)) + "\n  phi: {torsion: [4, 6, 8, 14]}",
    ).replace(
        "    phi: {sigma: 0.3 rad}\n    psi: {sigma: 0.3 rad}",
        "\n".join(f"    t{k}: {{sigma: 0.3 rad}}" for k in range(4)),
    )
    setup = build(many, workplace)
    assert setup.bias.grid_axes is None, torsions
    assert setup.method.rct_points.shape == (4096, 4)
    assert float(setup.method.rct_points.abs().max()) <= math.pi
    assert float(setup.method.rct_points.mean(0).abs().max()) < 0.01


def three(text):
    """Of three variables, with a grid of 105 x 201 x 401 nodes, twice as fine for OPES."""
    text = text.replace("  d: {dist", "  e: {distance: [1, 20]}\n  d: {dist")
    more = "d: {sigma: 0.01 nm, range: 0.2 nm .. 0.6 nm}\n    e: {sigma: 0.01 nm, range: 0.4 nm .. 1.2 nm}"
    return text.replace(PSI, more)


def test_a_grid_of_too_many_nodes_is_not_made(workplace):
    setup = build(three(OPES), workplace)
    assert setup.bias.grid_axes is None
    assert asked_nodes(setup.config, setup.bias.variables) == 210 * 401 * 801
    with pytest.raises(
        UserError,
        match=r"^bias\.variables: the grid of the bias would have 8,463,105 nodes.*sigma.*bins.*compression",
    ):
        build(three(CONFIG), workplace)
    assert asked_nodes(build(OPES, workplace).config, setup.bias.variables) == 0
    small = build(OPES.replace(PSI, "d: {sigma: 0.02 nm, range: 0.2 nm .. 0.6 nm}"), workplace)
    assert small.bias.grid_axes is not None


def test_stages_may_have_no_length(workplace):
    none = CONFIG.replace("fill: 0.1 ps", "fill: 0 ps\n  melt: 0 ps").replace("burn_in: 0.04 ps", "burn_in: 0 ps")
    settings = build(none, workplace).settings
    assert (settings.deposits, settings.burn_in_records, settings.melt_ps, settings.records) == (0, 0, 0.0, 20)


def test_a_region_may_reach_into_a_range(workplace):
    found = build(CONFIG.replace(DIFFERENCE, "{variable: d, region: 0.5 nm .. 0.7 nm}"), workplace)
    assert found.request.difference.region.upper == 0.7
    wider = "d: {sigma: 0.02 nm, range: 0.2 nm .. 0.9 nm}"  # the grid's range: walkers are pushed there
    build(CONFIG.replace(PSI, wider).replace(DIFFERENCE, "{variable: d, region: 0.7 nm .. 0.8 nm}").replace(
        "[phi, psi]", "[phi, d]"), workplace)  # fmt: skip


def hills(names, heights=(1.0, 2.0)):
    count = len(heights)
    return HillsTable(
        names=names,
        domains=((-math.pi, math.pi),) * len(names),
        centers=torch.full((count, len(names)), 0.5, dtype=torch.float64),
        sigmas=torch.full((count, len(names)), 0.3, dtype=torch.float64),
        heights=torch.tensor(heights, dtype=torch.float64),
        biasf=torch.full((count,), 10.0, dtype=torch.float64),
        times=torch.arange(count, dtype=torch.float64),
    )


def test_a_bias_starts_from_somebodys_hills(workplace):
    write_hills(workplace / "one", hills(("phi", "psi")))
    write_hills(workplace / "two", hills(("phi", "psi"), (4.0,)))
    write_hills(workplace / "other", hills(("psi", "phi")))
    text = CONFIG.replace("  kind: well", "  start_from: [one, two]\n  kind: well")
    at = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert float(build(text, workplace).bias(at)) == pytest.approx(7.0, rel=1e-3)
    assert float(build(CONFIG, workplace).bias(at)) == 0.0
    with pytest.raises(UserError, match=r"the hills are along psi, phi, the bias along phi, psi"):
        build(text.replace("[one, two]", "[other]"), workplace)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_growing_files_go_back_to_where_they_were(tmp_path):
    files = GrowingFiles(tmp_path, ("a", "b"))

    def rows(text):
        return lambda path: path.write_text(f"# head\n{text}\n")

    files.append("a", rows("1"))
    sizes = files.sizes()
    files.append("a", rows("2"))
    files.append("b", rows("3"))
    assert (tmp_path / "a").read_text() == "# head\n1\n2\n"
    files.cut_back(sizes)
    assert (tmp_path / "a").read_text() == "# head\n1\n"
    assert not (tmp_path / "b").exists()
    files.append("a", rows("2"))
    assert (tmp_path / "a").read_text() == "# head\n1\n2\n"
    (tmp_path / "a").write_text("# head\n")
    with pytest.raises(UserError, match="shorter than at the last checkpoint"):
        files.cut_back(sizes)


def request(lower, upper, period=2 * math.pi):
    return DifferenceRequest(variable="phi", region=Region(lower, upper, period), bootstrap=2)


def test_cores_keep_away_from_borders_around_the_circle():
    at = torch.tensor([0.1, 0.6, 1.0, 1.4, 1.9, 2.4, 2.6, -0.4, -0.6, -3.0, math.nan])
    inside, outside = cores(at, request(0.0, 2.0))
    assert inside.tolist() == [False, True, True, True, False] + [False] * 6
    assert outside.tolist() == [False] * 6 + [True, False, True, True, False]
    inside, outside = cores(torch.tensor([3.0, -3.0, 0.0, 2.2, -2.2]), request(2.5, -2.5))  # across the end
    assert inside.tolist() == [True, True, False, False, False]
    assert outside.tolist() == [False, False, True, False, False]


def staged(stage, done, values, log_weights, alive, bias):
    flat = torch.zeros(len(alive), dtype=torch.float64)
    record = Record(0.0, values, flat, 0.0, flat, {}, alive, log_weights, torch.zeros(len(alive), 1, 3), True, ())
    return Staged(stage, done, 10, type("State", (), {"bias": bias, "deposits": 1})(), record)


def test_running_numbers_are_those_of_all_records_and_survive_a_stop():
    bias = RepulsionBias.well_tempered(
        [BiasVariable("x", 0.1)], kT=2.5, bias_factor=5.0, height=1.0, grid=[GridAxis(-2.0, 2.0, 200)]
    )
    generator = torch.Generator().manual_seed(1)
    series = 2.2 * torch.randn(30, 5, generator=generator, dtype=torch.float64)
    log_weights = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    alive = torch.ones(30, 5, dtype=torch.bool)
    alive[12:, 2] = False
    log_weights[~alive] = -math.inf
    wanted = request(0.0, 2.0, None)
    watch = Watch(5, wanted)
    watch.take(staged("fill", 1, series[:1].T, log_weights[0] + 50.0, alive[0], bias), {"phi": series[0]})
    before = watch.counts.clone()
    for k in range(30):
        if k == 17:
            watch = Watch(5, wanted, watch.state_dict())
        watch.take(staged("sample", k, series[k][:, None], log_weights[k], alive[k], bias), {"phi": series[k]})
    assert watch.ess == pytest.approx(float(effective_sample_size(log_weights.reshape(-1))), rel=1e-9)
    inside, outside = cores(series, wanted)
    crossings = count_crossings(inside & alive, outside & alive)
    assert int(watch.counts[0]) == crossings.total > 10
    beyond = (outside_grid(bias, series[..., None]) & alive).sum()
    assert int(watch.counts[1] - before[1]) == int(beyond) > 10
    assert int(beyond) < int(outside_grid(bias, series[..., None]).sum())  # the dead do not count


def test_groups_are_walkers_or_blocks_of_few():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 20, generator=generator, dtype=torch.float64)
    many, whole = _groups(noise, torch.zeros(400, 20), None)
    assert whole
    assert torch.equal(many, torch.arange(20).repeat(400))
    slow = noise[:, :2].clone()
    for k in range(1, 400):
        slow[k] += 0.5 * slow[k - 1]
    few, whole = _groups(slow, torch.zeros(400, 2), None)
    assert not whole
    assert 8 <= int(few.max()) + 1 < 200  # not every record by itself


def test_walkers_without_any_weight_are_no_groups():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    log_weights = torch.zeros(50, 20, dtype=torch.float64)
    log_weights[:, [0, 3]] = -math.inf
    log_weights[25:, 7] = -math.inf  # retired on the way: its first records count
    groups, whole = _groups(noise, log_weights, None)
    assert whole
    assert int(groups.max()) + 1 == 18
    living = groups[log_weights.reshape(-1) > -math.inf]
    assert torch.equal(torch.bincount(living), torch.tensor([50] * 5 + [25] + [50] * 12))
    log_weights[:, :9] = -math.inf  # eleven are left: too few for their scatter alone
    few, whole = _groups(noise, log_weights, None)
    assert not whole
    assert int(few.max()) + 1 == len(torch.unique(few[log_weights.reshape(-1) > -math.inf])) > 11
    log_weights[:, 1:] = -math.inf
    log_weights[:, 0] = 0.0
    for bias in (noise.cumsum(dim=0), torch.zeros_like(noise)):  # walkers that hardly forget; no bias at all
        alone, whole = _groups(bias, log_weights, None)
        assert not whole
        assert int(alone.max()) + 1 == 8


def test_ctrl_c_waits_for_the_record_once():
    said = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    with interrupt_between_records(lambda: said.append(1)) as interrupt:
        assert not interrupt.pending
        signal.raise_signal(signal.SIGINT)
        assert interrupt.pending
        assert said == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt_between_records(lambda: said.append(2)) as interrupt:
        signal.raise_signal(signal.SIGINT)  # as it was asked for
    assert (said, interrupt.pending) == ([1], False)
    signal.signal(signal.SIGINT, before)


def test_a_folder_in_which_nothing_was_done_goes_again(workplace, monkeypatch):
    def crash(self, folder, console):
        raise RuntimeError("out of memory")

    def crash_later(self, folder, console):
        folder.append_metrics({"stage": "fill"})
        crash(self, folder, console)

    (workplace / "metad.yaml").write_text(CONFIG)
    for way, left in ((crash, False), (crash_later, True)):
        monkeypatch.setattr(BiasedJob, "execute", way)
        result = call("run", "metad.yaml", "-o", "out")
        assert isinstance(result.exception, RuntimeError)  # with its traceback: it is no error of the user's
        assert (workplace / "out").exists() == left


def test_narrow_and_wide_sigmas_are_doubted(workplace):
    assert list(doubts_of(build(CONFIG, workplace))) == []
    (narrow,) = doubts_of(build(CONFIG.replace(PSI, "psi: {sigma: 1 deg}"), workplace))
    assert narrow.startswith("sigma of psi is 0.0028 of the variable's circle: 360 hills side by side cover it once")
    (narrow,) = doubts_of(build(CONFIG.replace(PSI, "d: {sigma: 0.002 nm}"), workplace))
    assert narrow.startswith("sigma of d is 0.005 of the variable's range: 200 hills")
    (wide,) = doubts_of(build(CONFIG.replace(PSI, "d: {sigma: 0.12 nm}"), workplace))
    assert wide.startswith("sigma of d is 0.3 of the variable's range: the bias resolves little")


def test_the_range_of_a_variable_is_that_of_its_grid_unless_the_bias_has_one(workplace):
    setup = build(CONFIG.replace(PSI, "d: {sigma: 0.02 nm}"), workplace)
    _, d = setup.bias.grid_axes
    assert (d.lower, d.upper) == (0.2, 0.6)
    assert str(setup.config.bias.variables["d"].range) == "0.2 nm .. 0.6 nm"  # in the config that is kept
    assert setup.config.bias.variables["phi"].range is None
    own = build(CONFIG.replace(PSI, "d: {sigma: 0.02 nm, range: 0.1 nm .. 0.9 nm}"), workplace)
    assert (own.bias.grid_axes[1].lower, own.bias.grid_axes[1].upper) == (0.1, 0.9)
    free = build(OPES.replace(PSI, "d: {sigma: 0.02 nm}"), workplace)  # OPES sums kernels unless a grid is asked for
    assert free.bias.grid_axes is None
    assert free.config.bias.variables["d"].range is None


def test_nothing_is_read_off_an_empty_bias(workplace):
    setup = build(CONFIG, workplace)
    request = setup.request.difference
    assert _from_bias(setup, setup.bias, request) is None
    write_hills(workplace / "one", hills(("phi", "psi")))
    given = build(CONFIG.replace("  kind: well", "  start_from: [one]\n  kind: well"), workplace)
    assert math.isfinite(_from_bias(given, given.bias, given.request.difference).value)


def test_a_region_keeps_the_unit_it_was_written_in(workplace):
    found = build(CONFIG.replace(DIFFERENCE, "{variable: phi, region: 150 deg .. -150 deg}"), workplace)
    request = found.request.difference
    assert request.region.lower == pytest.approx(math.radians(150.0))
    assert region_text(request) == "150 < phi < -150 deg across the seam"
    assert found.config.model_dump(mode="json")["analysis"]["difference"]["region"] == "150 deg .. -150 deg"
    mixed = build(CONFIG.replace(DIFFERENCE, "{variable: phi, region: 0 rad .. 90 deg}"), workplace)
    assert region_text(mixed.request.difference) == "0 < phi < 1.571 rad"
    length = build(CONFIG.replace(DIFFERENCE, "{variable: d, region: 3 A .. 4 A}"), workplace)
    assert region_text(length.request.difference) == "3 < d < 4 A"


def test_all_walkers_leave_frames():
    for samples, frames, walkers in ((230400, 1000, 384), (120, 40, 6), (100, 1000, 10)):
        stride = _stride(samples, frames, walkers)
        kept = torch.arange(0, samples, stride)
        assert len(torch.unique(kept % walkers)) == min(walkers, len(kept))
        assert 0.5 * min(frames, samples) < len(kept) <= max(frames, samples // stride + 1)


@pytest.mark.parametrize(("walkers", "threads"), [(32, 1), (1000, 1), (1900, 2), (10_000, 8)])
def test_threads_by_the_size_of_the_batch(monkeypatch, walkers, threads):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    _threads_that_pay(22 * walkers)
    assert taken == [threads]
