"""`feynkac train`: flows, diffusion models of molecules, and value networks."""
