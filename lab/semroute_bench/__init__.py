"""What a decision costs on this machine: `semroute bench` and `make bench`.

All paths are measured side by side in one run and take turns, so a noisy moment affects all of them. CPU
time is recorded next to wall time, because the load of other processes moves mostly the latter. Only ratios
within a run are judged.
"""
