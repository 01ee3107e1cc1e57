"""Physical constants in the units used everywhere inside feynkac: nm, kJ/mol, K, ps, rad, elementary charge."""

import math

__all__ = ["AVOGADRO", "COULOMB_CONSTANT", "GAS_CONSTANT", "kT"]

GAS_CONSTANT = 8.31446261815324e-3
"""Molar gas constant in kJ/(mol K) (CODATA 2018, exact)."""

AVOGADRO = 6.02214076e23
"""Avogadro constant in 1/mol (exact)."""

# e^2 N_A / (4 pi eps0), with 1e9 nm/m and 1e-3 kJ/J; CODATA 2018 as in OpenMM, so that energies agree.
COULOMB_CONSTANT = (1.602176634e-19**2 * AVOGADRO) / (4.0 * math.pi * 8.8541878128e-12) * 1e9 / 1e3
"""Coulomb's constant in kJ nm/(mol e^2)."""


def kT(temperature: float) -> float:
    """Thermal energy in kJ/mol at a temperature in K.

    Raises:
        ValueError: the temperature is not a positive finite number.
    """
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: got {temperature!r} K, expected a positive finite number of kelvin")
    return GAS_CONSTANT * temperature
