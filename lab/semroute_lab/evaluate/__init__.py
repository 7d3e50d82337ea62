"""Measuring a bundle: baselines, protocols, reports and figures.

A file is read (`common.tables`), its texts are scored once (`scoring`), and a protocol (`pair`,
`intent`, `pool`, `mixed`, `robustness`) turns rows and scores into a plain report. The tables (`reports`),
the figures (`plots`, with the extra `train`) and the bundle's card are drawn from that report alone.
"""
