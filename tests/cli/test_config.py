"""Configs: the shipped ones are valid, and every mistake is named with file, line, key, value and what was expected."""

from pathlib import Path

import pytest
import yaml

from feynkac.cli.errors import UserError
from feynkac.cli.free_energy.config import FreeEnergyConfig
from feynkac.cli.paths import default_run_folder, resolve, shipped
from feynkac.cli.validation import ConfigError, load_config

GOOD = """\
job: free_energy
name: test
system:
  pdb: molecule.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
proposal:
  plugin: somewhere:Proposal
sampling:
  samples: 100
  seed: 1
analysis:
  variables:
    phi: {torsion: [4, 6, 8, 14]}
    d: {distance: ["ALA2:N", "ALA2:C"], range: 0.2 nm .. 0.6 nm}
  surface: {variables: [phi, d], bins: [12, 8]}
  profiles: [phi]
  difference:
    variable: phi
    region: 0 rad .. 2 rad
"""


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "molecule.pdb").write_text("")
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, FreeEnergyConfig, overrides)
    return str(caught.value).splitlines()


def test_a_config_is_read(config_file):
    config = load_config(config_file, FreeEnergyConfig)
    assert config.system.temperature == 300.0
    assert config.system.pdb == str(config_file.parent / "molecule.pdb")
    assert config.sampling.chunk_size == 2000
    assert config.analysis.variables["phi"].torsion == (4, 6, 8, 14)
    assert config.analysis.difference.region.upper == 2.0


def test_a_resolved_config_reads_back_the_same(config_file, tmp_path):
    config = load_config(config_file, FreeEnergyConfig)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    data = config.model_dump(mode="json", exclude_none=True) | {"provenance": {"versions": {}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    assert load_config(folder / "config.yaml", FreeEnergyConfig) == config


def test_configs_are_frozen(config_file):
    config = load_config(config_file, FreeEnergyConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("temperature:", "temprature:", 6, ["system.temprature", "unknown key", "'temperature'", "force_field"]),
        ("300 K", "300 nm", 6, ["system.temperature = '300 nm'", "wrong unit 'nm'", "units: K"]),
        ("300 K", "300", 6, ["system.temperature = 300", "the unit is missing"]),
        ("300 K", "-3 K", 6, ["must be positive"]),
        ("molecule.pdb", "absent.pdb", 4, ["system.pdb = 'absent.pdb'", "there is no", "absent.pdb"]),
        ("molecule.pdb", "data:molecules/alanin.pdb", 4, ["ships no data", "did you mean data:"]),
        ("samples: 100", "samples: 1.5", 10, ["sampling.samples = 1.5", "integer"]),
        ("samples: 100", "samples: '100'", 10, ["sampling.samples = '100'", "integer"]),
        ("seed: 1", "seed: -1", 11, ["sampling.seed = -1", "greater than or equal to 0"]),
        ("job: free_energy", "job: free_enrgy", 1, ["job = 'free_enrgy'", "did you mean 'free_energy'"]),
        ("name: test", "name: a/b", 2, ["name = 'a/b'", "folder name"]),
        ("[4, 6, 8, 14]", "[4, 6, 8]", 14, ["phi.torsion = [4, 6, 8]", "at least 4 entries, got 3"]),
        ("[4, 6, 8, 14]", "[4, 6, 8, 1.5]", 14, ["phi.torsion[3] = 1.5", "ALA2:CA"]),
        ("torsion", "torson", 14, ["phi.torson", "did you mean 'torsion'"]),
        ("0.2 nm .. 0.6 nm", "0.6 nm .. 0.2 nm", 15, ["variables.d", "lower to its upper end"]),
        ("bins: [12, 8]", "bins: [12]", 16, ["analysis.surface", "a number for each of the 2 variables"]),
        ("bins: [12, 8]", "bins: [12, 8], method: kde", 16, ["needs bandwidth"]),
        ("profiles: [phi]", "profiles: [psi]", 12, ["'psi' is none of the variables; defined: phi, d"]),
        ("0 rad .. 2 rad", "0 .. 2", 20, ["difference.region = '0 .. 2'", "0 rad .. 2 rad"]),
        ("  seed: 1\n", "", 9, ["sampling.seed: this key is missing"]),
        ("plugin: somewhere:Proposal", "options: {}", 7, ["either checkpoint: FOLDER or plugin: NAME"]),
    ],
)
def test_mistakes_are_named_with_their_line(config_file, old, new, line, parts):
    assert old in GOOD
    config_file.write_text(GOOD.replace(old, new, 1))
    found = problems(config_file)
    matching = [text for text in found if all(part in text for part in parts)]
    assert matching, found
    assert f"config.yaml, line {line}:" in matching[0]


def test_all_mistakes_are_listed_at_once(config_file):
    config_file.write_text(GOOD.replace("300 K", "300").replace("samples: 100", "sampels: 100"))
    found = problems(config_file)
    assert len(found) == 3  # the wrong temperature, the unknown key, the missing one
    with pytest.raises(ConfigError):
        load_config(config_file, FreeEnergyConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job: [", "line 1: not readable as YAML"),
        ("- a\n- b\n", "line 1: expected 'key: value' lines"),
        ("name: a\njob: b\nname: c\n", "line 3: 'name' is given twice, first in line 1"),
        ("", "line 1: expected"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert message in problems(path)[0]


def test_missing_files_and_folders(tmp_path):
    assert "there is no such file" in problems(tmp_path / "none.yaml")[0]
    assert "is a folder" in problems(tmp_path)[0]


def test_overrides(config_file):
    config = load_config(
        config_file, FreeEnergyConfig, ["sampling.seed=7", "analysis.surface.bins=[3, 4]", "energy.precision=single"]
    )
    assert config.sampling.seed == 7
    assert config.analysis.surface.bins == (3, 4)
    assert config.energy.precision == "single"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sampling.seed=x", ["--set", "sampling.seed = 'x'", "integer"]),
        ("sampling.sede=1", ["--set", "did you mean 'seed'"]),
        ("sampling.seed", ["expected KEY.KEY=VALUE"]),
        ("name.x=1", ["holds a value, no keys"]),
        ("sampling.seed=[", ["not readable as YAML"]),
    ],
)
def test_wrong_overrides_name_the_option(config_file, override, parts):
    found = problems(config_file, override)
    assert any(all(part in text for part in parts) for text in found), found


def test_numbers_in_scientific_notation_and_words_stay_what_they_are(tmp_path):
    from feynkac.cli.yaml_lines import load_yaml

    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-4\nb: none\nc: 2026-01-01\nd: 1.5\n")
    assert load_yaml(path).data == {"a": 1e-4, "b": "none", "c": "2026-01-01", "d": 1.5}


def test_shipped_data_cannot_reach_outside():
    with pytest.raises(ValueError, match="ships no data"):
        resolve("data:../cli/main.py", Path())
    assert resolve("data:molecules/alanine_dipeptide.pdb", Path()).is_file()
    assert "molecules/alanine_dipeptide.pdb" in shipped()


def test_default_folders_count_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_run_folder("a") == Path("runs/a-001")
    for name in ("a-001", "a-007", "a-x", "ab-009"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert default_run_folder("a") == Path("runs/a-008")
