"""feynkac: inference-time sampling with correct weights.

A sampler that somebody already has (a diffusers pipeline, a normalizing flow, a molecular simulation) is run as
a weighted population: particles that move, carry log-weights and are resampled. The sub-packages are

* :mod:`feynkac.fkc` -- the Feynman-Kac core: population, resampling, the one sequential Monte Carlo loop;
* :mod:`feynkac.flows` -- normalizing-flow proposals and importance sampling;
* :mod:`feynkac.molecular` -- energies, collective variables and free energies of molecules;
* :mod:`feynkac.cli` -- the ``feynkac`` command.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("feynkac")
except PackageNotFoundError:  # pragma: no cover - a source tree that was never installed
    __version__ = "0+unknown"
