"""The frozen set of commands and options, and how errors leave the program."""

import pytest
import typer
from typer.testing import CliRunner

from feynkac.cli import main
from feynkac.cli.errors import UserError, explained, user_errors
from feynkac.fkc.errors import CheckpointError

FROZEN = {
    "": {"--verbose", "-v"},
    "run": {"CONFIG", "--output", "-o", "--set", "-s"},
    "steer": {
        *("CONFIG", "--model", "--prompt", "--label", "--negative-prompt", "--reward", "--scale", "--method"),
        *("--particles", "--candidates", "--temperature", "--potential", "--steps", "--guidance-scale", "--eta"),
        *("--transition", "--scheduler", "--resampler", "--ess-threshold", "--final", "--seed", "--seeds"),
        *("--chunk-size", "--dtype", "--device", "--size", "--output", "-o", "--set", "-s"),
    },
    "fes": {
        *("FILE...", "--kt", "--temperature", "--bin", "--min", "--max", "--spacing", "--mintozero", "--negbias"),
        *("--idw", "--stride", "--nohistory", "--cv", "--bias", "--weights", "--rct", "--skip", "--walkers"),
        *("--blocks", "--kde", "--deltaf", "--against", "--bias-factor", "--periodic", "--units", "--outfile", "-o"),
        *("--plots", "--no-plots"),
    },
    "train": set(),
    "train config": {"CONFIG", "--output", "-o", "--set", "-s"},
    "train flow": {"--config", "-c", "--output", "-o", "--set", "-s"},
    "train value": {"--config", "-c", "--output", "-o", "--set", "-s"},
    "resume": {"RUN_DIR"},
    "report": {"RUN_DIR"},
    "doctor": {"--measure", "--no-measure"},
    "plugins": set(),
}


def options(command) -> set[str]:
    found: set[str] = set()
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            found.add(parameter.metavar or parameter.name)
        else:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found - {"--help"}


def commands(group, prefix=""):
    """Every command by its full name, those of groups too."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


def test_commands_and_options_are_frozen():
    """People's scripts call these: a change here is a change of the public face and goes into the changelog."""
    group = typer.main.get_command(main.app)
    assert {"": options(group)} | {name: options(c) for name, c in commands(group)} == FROZEN


def test_every_command_explains_itself():
    runner = CliRunner()
    for name in FROZEN:
        result = runner.invoke(main.app, [*name.split(), "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "error", [UserError("a clear line"), CheckpointError("a clear line"), FileExistsError("a clear line")]
)
def test_user_errors_are_one_line_and_exit_code_2(error, capsys):
    @explained
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == "error: a clear line\n"


def test_bugs_keep_their_traceback():
    @explained
    def command() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        command()
    assert ValueError not in user_errors()


def test_interrupts_are_quiet(capsys):
    @explained
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "stopped\n"


def test_messages_with_brackets_are_shown_as_they_are(capsys):
    @explained
    def command() -> None:
        raise UserError('pip install "feynkac[molecular]"')

    with pytest.raises(typer.Exit):
        command()
    assert "feynkac[molecular]" in capsys.readouterr().err
