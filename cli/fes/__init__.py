"""`feynkac fes`: free energies from the files of biased runs."""
