"""What a decision costs on this machine: `semroute bench` and `make bench`.

All paths are measured side by side in one run and take turns, so a noisy moment affects all of them, and only
ratios within a run are judged. CPU time is recorded next to wall time: other processes move mostly the latter.
"""
