"""The command `feynkac`: its options, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import explained

__all__ = ["app", "main"]

app = typer.Typer(
    name="feynkac",
    help="Samples with correct weights, free energies with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the job, or data:configs/NAME.yaml.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder to make; default: runs/NAME-001 and so on."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value, e.g. sampling.seed=2; repeatable."),
]


def _console() -> Console:
    return Console()


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show log messages of the libraries.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)


@app.command()
@explained
def run(config: Config, output: Output = None, overrides: Overrides = None) -> None:
    """Run a job: draw, weight, compute free energies, write a folder with report and data."""
    from .commands.run import run as command

    command(_console(), config, output, overrides or [])


@app.command()
@explained
def train(config: Config, output: Output = None, overrides: Overrides = None) -> None:
    """Train a proposal: run dynamics, fit a flow to the frames, write a checkpoint."""
    from .commands.train import train as command

    command(_console(), config, output, overrides or [])


@app.command()
@explained
def resume(run_dir: RunDir) -> None:
    """Go on with a run that was stopped or killed."""
    from .commands.resume import resume as command

    command(_console(), run_dir)


@app.command()
@explained
def report(run_dir: RunDir) -> None:
    """Draw pictures and report of a finished run again."""
    from .commands.report import report as command

    command(_console(), run_dir)


@app.command()
@explained
def doctor(
    measure: Annotated[bool, typer.Option(help="Time the energies too (some seconds).")] = True,
) -> None:
    """Show what is installed, which devices there are, and how fast energies are here."""
    from .commands.doctor import doctor as command

    command(_console(), measure=measure)


@app.command()
@explained
def plugins() -> None:
    """List the installed plugins."""
    from .commands.plugins import plugins as command

    command(_console())


def main() -> None:
    """Entry point of the console script."""
    app()
