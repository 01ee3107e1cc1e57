"""`feynkac steer`: a diffusers pipeline towards rewards."""
