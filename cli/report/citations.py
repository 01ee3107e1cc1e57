"""What to cite for a run: the program, the methods, the force field and the libraries that it used."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import RunConfig

__all__ = ["CORRECTORS", "citations", "force_field_citations"]

CORRECTORS = (
    "feynkac: the feynkac developers, version {version}.",
    "Feynman-Kac correctors: M. Skreta, T. Akhound-Sadegh, V. Ohanesian, R. Bondesan, A. Aspuru-Guzik, A. Doucet, "
    "R. Brekelmans, A. Tong, K. Neklyudov, ICML, PMLR 267, 55906 (2025).",
    "Sequential Monte Carlo samplers: P. Del Moral, A. Doucet, A. Jasra, J. R. Stat. Soc. B 68, 411 (2006).",
)
"""What a run of correctors rests on; ``version`` is to be filled in."""

_ALWAYS = (
    "feynkac: the feynkac developers, version {version}.",
    "Importance sampling of molecules from generative models: F. Noé, S. Olsson, J. Köhler, H. Wu, "
    "Science 365, eaaw1147 (2019).",
    "Pareto-smoothed importance sampling and k-hat: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "
    "J. Mach. Learn. Res. 25(72), 1 (2024).",
    "OpenMM 8: P. Eastman et al., J. Phys. Chem. B 128, 109 (2024).",
    "MDTraj: R. T. McGibbon et al., Biophys. J. 109, 1528 (2015).",
    "File formats of PLUMED 2: G. A. Tribello, M. Bonomi, D. Branduardi, C. Camilloni, G. Bussi, "
    "Comput. Phys. Commun. 185, 604 (2014).",
)
_FORCE_FIELDS = {
    "amber99sbildn": "amber99sb-ildn: K. Lindorff-Larsen et al., Proteins 78, 1950 (2010).",
    "amber14": "ff14SB: J. A. Maier et al., J. Chem. Theory Comput. 11, 3696 (2015).",
    "amber96": "ff96: P. A. Kollman, Acc. Chem. Res. 29, 461 (1996).",
    "obc": "OBC implicit solvent: A. Onufriev, D. Bashford, D. A. Case, Proteins 55, 383 (2004).",
    "gbn2": "GBn2 implicit solvent: H. Nguyen, D. R. Roe, C. Simmerling, J. Chem. Theory Comput. 9, 2020 (2013).",
}
_SPLINES = "Neural spline flows: C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, NeurIPS 32 (2019)."


def citations(config: RunConfig, version: str) -> list[str]:
    """References for a run, one line each."""
    found = [line.format(version=version) for line in _ALWAYS]
    if config.proposal.checkpoint is not None:
        found.insert(2, _SPLINES)
    return found + force_field_citations(config.system.force_field)


def force_field_citations(files: Sequence[str]) -> list[str]:
    """References for OpenMM's force-field files."""
    names = " ".join(files).lower()
    return [text for key, text in _FORCE_FIELDS.items() if key in names]
