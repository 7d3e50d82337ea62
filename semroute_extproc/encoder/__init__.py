"""The encoder: turns text into calibrated signals before a deadline."""
