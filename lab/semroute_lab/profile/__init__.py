"""A model joins without training: its errors by cluster of prompts are its profile.

UniRoute (arXiv 2502.08773, section 4). Serving reads the profile and never imports this package.
"""
