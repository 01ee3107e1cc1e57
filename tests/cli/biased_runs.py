"""Small configs of biased dynamics."""

CONFIG = """\
job: metadynamics
name: tiny
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
energy: {precision: single}
variables:
  phi: {torsion: [4, 6, 8, 14]}
  psi: {torsion: [6, 8, 14, 16]}
  d: {distance: [4, 16], range: 0.2 nm .. 0.6 nm}
bias:
  kind: well_tempered
  variables:
    phi: {sigma: 0.3 rad}
    psi: {sigma: 0.3 rad}
  bias_factor: 10
  height: 20 kJ/mol
restraints:
  tether: {kind: upper_wall, variable: d, at: 0.4 nm, stiffness: 5 kJ/mol, scale: 0.05 nm}
dynamics:
  walkers: 6
  time_step: 2 fs
  friction: 2 /ps
  pace: 5
  fill: 0.1 ps
  burn_in: 0.04 ps
  production: 0.4 ps
  record: 0.02 ps
  frames: 40
sampling: {seed: 3}
analysis:
  surface: {variables: [phi, psi], bins: [12, 12], bootstrap: 5}
  profiles: [phi, d]
  profile_bins: 12
  difference: {variable: phi, region: -1.5 rad .. 0 rad, bootstrap: 10}
"""
OPES = CONFIG.replace(
    "  kind: well_tempered\n", "  kind: opes\n"
).replace("  bias_factor: 10\n  height: 20 kJ/mol\n", "  barrier: 40 kJ/mol\n")  # fmt: skip
KINDS = {"well_tempered": CONFIG, "opes": OPES}
