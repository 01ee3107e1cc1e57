"""`feynkac run` of corrected configs: annealed, guided and multiplied laws, with the weights that make them exact."""
