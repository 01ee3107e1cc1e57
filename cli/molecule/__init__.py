"""`feynkac run` of annealed molecules: a diffusion model of a molecule brought to another temperature."""
