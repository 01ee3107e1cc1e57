"""What the embedded default needs: molecules, small checkpoints, example configs; read through importlib.resources."""
