"""Fitting artifacts of strategies and calibrating scores: `semroute fit` and `semroute calibrate`.

Torch and the extra `train` are not needed.
"""
