"""`feynkac run` of biased dynamics: metadynamics and OPES of many walkers along collective variables."""
