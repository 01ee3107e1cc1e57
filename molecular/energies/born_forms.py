"""Recognise the generalized Born models that OpenMM's XML files write as a CustomGBForce.

A CustomGBForce is an arbitrary program. Only the programs of OBC1, OBC2, GBn and GBn2, with or without the ACE surface
term, salt and a cutoff, are recognised, expression by expression; anything else raises.
"""

import re
from typing import Any

import numpy as np

from .errors import UnsupportedForceError
from .tables import Floats, GeneralizedBornTable

__all__ = ["read_custom_born", "read_gbsa_obc"]

_NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
_BURIAL = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);"
    "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
)
_NECK = (
    "Ivdw+neckScale*Ineck;Ineck=step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)"
    "/(1+100*(r-getd0(radindex1,radindex2))^2+0.3*1000000*(r-getd0(radindex1,radindex2))^6);Ivdw="
    + _BURIAL
    + ";radius1=or1+offset;radius2=or2+offset;"
)
_RADIUS = {
    "1/(1/or-tanh(0.8*psi+2.909125*psi^3)/radius)": (0.8, 0.0, 2.909125),
    "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)": (1.0, 0.8, 4.85),
    "1/(1/or-tanh(1.09511284*psi-1.907992938*psi^2+2.50798245*psi^3)/radius)": (
        1.09511284,
        1.907992938,
        2.50798245,
    ),
    "1/(1/or-tanh(alpha*psi-beta*psi^2+gamma*psi^3)/radius)": None,
}
_SELF = re.compile(
    rf"-0\.5\*(?P<coulomb>{_NUMBER})\*\(1/soluteDielectric-(?:1|(?P<salt>exp\(-kappa\*B\)))/solventDielectric\)\*charge\^2/B"
)
_SURFACE = re.compile(rf"(?P<surface>{_NUMBER})\*\(radius\+0\.14\)\^2\*\(radius/B\)\^6")
_PAIR = re.compile(
    rf"-(?P<coulomb>{_NUMBER})\*\(1/soluteDielectric-(?:1|(?P<salt>exp\(-kappa\*f\)))/solventDielectric\)\*charge1\*charge2"
    rf"(?:/f|\*\(1/f-(?P<shift>{_NUMBER})\))"
)
_PAIR_F = "f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"


def _refuse(what: str, expression: str) -> UnsupportedForceError:
    return UnsupportedForceError(
        f"CustomGBForce: {what} {expression!r} is not one of OBC1, OBC2, GBn or GBn2 as OpenMM's implicit/*.xml files "
        "write them; use OpenMMEnergy for this System"
    )


def _split(expression: str) -> tuple[str, dict[str, str]]:
    """An expression without blanks, cut into its value and its definitions."""
    head, *rest = expression.replace(" ", "").strip(";").split(";")
    return head, dict(part.split("=", 1) for part in rest if part)


def _parameters(force: Any) -> dict[str, Floats]:
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    rows = np.array([force.getParticleParameters(i) for i in range(force.getNumParticles())], dtype=np.float64)
    rows = rows.reshape(-1, len(names))
    return {name: rows[:, i].copy() for i, name in enumerate(names)}


def _burial_is_known(expression: str, has_neck: bool) -> bool:
    text = expression.replace(" ", "").strip(";")
    return text.startswith(_NECK) if has_neck else text == _BURIAL


def _neck_tables(force: Any, index: Floats, scale: float) -> tuple[Floats, Floats]:
    tables = {}
    for i in range(force.getNumTabulatedFunctions()):
        sizes = force.getTabulatedFunction(i).getFunctionParameters()
        # OpenMM's Discrete2DFunction keeps values[i + xsize * j]: the first argument runs fastest.
        tables[force.getTabulatedFunctionName(i)] = np.array(sizes[2], dtype=np.float64).reshape(sizes[1], sizes[0]).T
    rows = index.astype(np.int64)
    height, position = tables["getm0"][np.ix_(rows, rows)], tables["getd0"][np.ix_(rows, rows)]
    return scale * height, position


def read_custom_born(force: Any) -> GeneralizedBornTable:
    """Read a CustomGBForce written by OpenMM's implicit/{obc1,obc2,gbn,gbn2}.xml.

    Raises:
        UnsupportedForceError: an expression is not one of the recognised ones.
    """
    if force.getNumGlobalParameters() or force.getNumExclusions():
        raise UnsupportedForceError(
            "CustomGBForce: global parameters and exclusions are not supported; use OpenMMEnergy"
        )
    values = [force.getComputedValueParameters(i) for i in range(force.getNumComputedValues())]
    if [v[0] for v in values] != ["I", "B"]:
        raise _refuse("the list of computed values", str([v[0] for v in values]))
    parameters = _parameters(force)
    has_neck = "radindex" in parameters
    if not _burial_is_known(values[0][1], has_neck) or values[0][2] != force.ParticlePairNoExclusions:
        raise _refuse("the computed value I =", values[0][1])
    head, definitions = _split(values[1][1])
    if head not in _RADIUS or definitions.get("psi") != "I*or" or definitions.get("radius") != "or+offset":
        raise _refuse("the computed value B =", values[1][1])
    offset = float(definitions["offset"])
    n = force.getNumParticles()
    coefficients = _RADIUS[head]
    if coefficients is None:
        tanh = np.stack([parameters["alpha"], parameters["beta"], parameters["gamma"]], axis=1)
    else:
        tanh = np.tile(np.array(coefficients), (n, 1))
    neck_m = neck_d = None
    neck_cutoff = 0.0
    if has_neck:
        neck = _split(values[0][1])[1]
        neck_cutoff = float(neck["neckCut"])
        neck_m, neck_d = _neck_tables(force, parameters["radindex"], float(neck["neckScale"]))
    return GeneralizedBornTable(
        charge=parameters["charge"],
        radius=parameters["or"] + offset,
        offset_radius=parameters["or"],
        scaled_radius=parameters["sr"],
        tanh=tanh,
        neck_m=neck_m,
        neck_d=neck_d,
        neck_cutoff=neck_cutoff,
        cutoff=_cutoff_of(force, "CustomGBForce"),
        buried_term=False,
        **_read_energy_terms(force),
    )


def _read_energy_terms(force: Any) -> dict[str, float]:
    """Coulomb constant, dielectrics, salt and surface factor of the energy terms; raise on any unknown term."""
    found: dict[str, float] = {"surface": 0.0}
    seen = set()
    cutoff = _cutoff_of(force, "CustomGBForce")
    for i in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(i)
        head, definitions = _split(expression)
        single = kind == force.SingleParticle
        if single and (match := _SELF.fullmatch(head)):
            seen.add("self")
        elif not single and definitions.get("f") == _PAIR_F[2:] and (match := _PAIR.fullmatch(head)):
            seen.add("pair")
            shift = float(match["shift"] or 0.0)
            if not np.isclose(shift, 0.0 if cutoff is None else 1.0 / cutoff, rtol=1e-12):
                raise _refuse("the shift of the pair term", expression)
        elif single and definitions.get("radius") == "or+offset" and (surface := _SURFACE.fullmatch(head)):
            found["surface"] = float(surface["surface"])
            continue
        else:
            raise _refuse("the energy term", expression)
        found["coulomb"] = float(match["coulomb"])
        found["solute_dielectric"] = float(definitions["soluteDielectric"])
        found["solvent_dielectric"] = float(definitions["solventDielectric"])
        found["kappa"] = float(definitions["kappa"]) if match["salt"] else 0.0
    if seen != {"self", "pair"}:
        raise _refuse("the set of energy terms", str(sorted(seen)))
    return found


def _cutoff_of(force: Any, name: str) -> float | None:
    from openmm import unit

    method = force.getNonbondedMethod()
    if method == force.NoCutoff:
        return None
    if method == force.CutoffNonPeriodic:
        return float(force.getCutoffDistance().value_in_unit(unit.nanometer))
    raise UnsupportedForceError(f"{name}: periodic cutoffs are not supported, only NoCutoff and CutoffNonPeriodic")


def read_gbsa_obc(force: Any, coulomb: float) -> GeneralizedBornTable:
    """Read a GBSAOBCForce: OBC2 with offset 0.009 nm and the ACE surface term (Onufriev, Bashford, Case 2004).

    Raises:
        UnsupportedForceError: the force uses a periodic cutoff.
    """
    from openmm import unit

    rows = [force.getParticleParameters(i) for i in range(force.getNumParticles())]
    charge = np.array([q.value_in_unit(unit.elementary_charge) for q, _, _ in rows], dtype=np.float64)
    radius = np.array([r.value_in_unit(unit.nanometer) for _, r, _ in rows], dtype=np.float64)
    scale = np.array([float(s) for _, _, s in rows], dtype=np.float64)
    area = force.getSurfaceAreaEnergy().value_in_unit(unit.kilojoule_per_mole / unit.nanometer**2)
    return GeneralizedBornTable(
        charge=charge,
        radius=radius,
        offset_radius=radius - 0.009,
        scaled_radius=scale * (radius - 0.009),
        tanh=np.tile(np.array([1.0, 0.8, 4.85]), (len(rows), 1)),
        neck_m=None,
        neck_d=None,
        neck_cutoff=0.0,
        coulomb=coulomb,
        solute_dielectric=float(force.getSoluteDielectric()),
        solvent_dielectric=float(force.getSolventDielectric()),
        kappa=0.0,
        surface=4.0 * np.pi * float(area),
        cutoff=_cutoff_of(force, "GBSAOBCForce"),
        buried_term=True,
    )
