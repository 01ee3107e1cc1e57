"""What to cite for a run: the program, the methods, the force field and the libraries that it used."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CORRECTORS", "biased_citations", "citations", "force_field_citations"]

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
_OPENMM, _MDTRAJ, _PLUMED = _ALWAYS[3:]
_BIASED = {
    "well_tempered": (
        "Metadynamics: A. Laio, M. Parrinello, Proc. Natl. Acad. Sci. USA 99, 12562 (2002).",
        "Well-tempered metadynamics: A. Barducci, G. Bussi, M. Parrinello, Phys. Rev. Lett. 100, 020603 (2008).",
        "c(t): P. Tiwary, M. Parrinello, J. Phys. Chem. B 119, 736 (2015).",
    ),
    "opes": ("OPES: M. Invernizzi, M. Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020).",),
}
_DYNAMICS = (
    "Multiple walkers: P. Raiteri, A. Laio, F. L. Gervasio, C. Micheletti, M. Parrinello, J. Phys. Chem. B 110, 3533 "
    "(2006).",
    "BAOAB Langevin dynamics: B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102 (2013).",
    "Autocorrelation times: C. J. Geyer, Stat. Sci. 7, 473 (1992); U. Wolff, Comput. Phys. Commun. 156, 143 (2004).",
)
_FORCE_FIELDS = {
    "amber99sbildn": "amber99sb-ildn: K. Lindorff-Larsen et al., Proteins 78, 1950 (2010).",
    "amber14": "ff14SB: J. A. Maier et al., J. Chem. Theory Comput. 11, 3696 (2015).",
    "amber96": "ff96: P. A. Kollman, Acc. Chem. Res. 29, 461 (1996).",
    "obc": "OBC implicit solvent: A. Onufriev, D. Bashford, D. A. Case, Proteins 55, 383 (2004).",
    "gbn2": "GBn2 implicit solvent: H. Nguyen, D. R. Roe, C. Simmerling, J. Chem. Theory Comput. 9, 2020 (2013).",
}
_SPLINES = "Neural spline flows: C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, NeurIPS 32 (2019)."


def citations(force_field: Sequence[str], version: str, *, flow: bool) -> list[str]:
    """References for draws of a proposal, a flow or another, weighted to a force field; one line each."""
    found = [line.format(version=version) for line in _ALWAYS]
    if flow:
        found.insert(2, _SPLINES)
    return found + force_field_citations(force_field)


def force_field_citations(files: Sequence[str]) -> list[str]:
    """References for OpenMM's force-field files."""
    names = " ".join(files).lower()
    return [text for key, text in _FORCE_FIELDS.items() if key in names]


def biased_citations(kind: str, force_field: Sequence[str], version: str) -> list[str]:
    """References for biased dynamics with a bias of ``kind``."""
    program, pareto = (_ALWAYS[k].format(version=version) for k in (0, 2))
    return [program, *_BIASED[kind], *_DYNAMICS, pareto, _OPENMM, _MDTRAJ, _PLUMED, *force_field_citations(force_field)]
