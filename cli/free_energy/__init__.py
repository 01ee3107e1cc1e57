"""`feynkac run` of free energies: draws of a proposal, weighted by the energy."""
