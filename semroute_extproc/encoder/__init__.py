"""The encoder: text in, calibrated signals out, before a deadline."""
