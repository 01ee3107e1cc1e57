"""Build the peptides that ship in data/molecules: all-atom structures relaxed in amber14 + OBC2.

    python data/scripts/build_peptides.py OUTPUT_FOLDER        (needs openmm and rdkit)

Alanine dipeptide is written from the coordinates below (Ace-Ala-Nme, L configuration, atom order of OpenMM's
Modeller); the zwitterionic peptides are embedded by RDKit from their sequence, hydrogens are added by OpenMM at pH 7,
and all are minimised.
"""

import sys
from pathlib import Path

import numpy as np
import openmm as mm
from openmm import app, unit

PEPTIDES = {"tetrapeptide_arip": "ARIP", "chignolin": "GYDPETGTWG"}

ALANINE_DIPEPTIDE = {
    "ACE": (
        "CH3 H1 H2 H3 C O",
        (-53, -42, 41, -455, 969, 7, -422, -610, -812, -367, -528, 964, 1458, 9, -8, 2038, 1093, -78),
    ),
    "ALA": (
        "N H CA HA CB HB1 HB2 HB3 C O",
        (2091, -1164, 31, 1533, -2004, 76, 3549, -1311, -38, 3996, -569, 626, 3928, -2698, 498, 5013, -2805, 514,
         3505, -3474, -141, 3549, -2820, 1514, 4117, -1067, -1457, 3430, -1266, -2467),
    ),
    "NME": (
        "N H C H1 H2 H3",
        (5394, -664, -1531, 5899, -534, -663, 6113, -399, -2778, 6147, -1304, -3389, 7134, -80, -2563,
         5607, 388, -3341),
    ),
}  # fmt: skip


def alanine_dipeptide() -> tuple[app.Topology, np.ndarray]:
    """Topology and positions (22, 3) in nm."""
    topology = app.Topology()
    chain = topology.addChain("A")
    numbers: list[int] = []
    for name, (atoms, coordinates) in ALANINE_DIPEPTIDE.items():
        residue = topology.addResidue(name, chain)
        for atom in atoms.split():
            topology.addAtom(atom, app.element.Element.getBySymbol(atom[0]), residue)
        numbers += coordinates
    topology.createStandardBonds()
    return topology, np.array(numbers, dtype=np.float64).reshape(-1, 3) * 1e-4


def peptide(sequence: str) -> tuple[app.Topology, np.ndarray]:
    """Zwitterionic peptide: topology and minimised positions in nm."""
    from io import StringIO

    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSequence(sequence))
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    block = Chem.MolToPDBBlock(Chem.RemoveHs(molecule), flavor=2)
    pdb = app.PDBFile(StringIO(block))
    force_field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(force_field, pH=7.0)
    system = force_field.createSystem(modeller.topology)
    simulation = app.Simulation(
        modeller.topology, system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=500)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)
    return modeller.topology, positions.value_in_unit(unit.nanometer)


def main(folder: Path) -> None:
    """Write every molecule as PDB."""
    folder.mkdir(parents=True, exist_ok=True)
    built = {"alanine_dipeptide": alanine_dipeptide(), **{name: peptide(s) for name, s in PEPTIDES.items()}}
    for name, (topology, positions) in built.items():
        with (folder / f"{name}.pdb").open("w") as handle:
            app.PDBFile.writeFile(topology, positions * unit.nanometer, handle, keepIds=False)
        print(f"{name}: {topology.getNumAtoms()} atoms")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
