"""Measuring a bundle: metrics, baselines, protocols, reports and figures.

Data flows one way: a file is read (`data`), its texts are scored once (`scoring`), a protocol
(`pair`, `intent`, `pool`, `robustness`) turns rows and scores into a plain report, and the table
(`reports`), the figures (`plots`) and the bundle's card are all drawn from that report alone.

Needs the extra `train` for figures and fitted baselines. The serving code never imports it.
"""
