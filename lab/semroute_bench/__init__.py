"""What a decision costs on this machine: `semroute bench` and `make bench`.

All paths are measured side by side in one run and take turns, so a noisy moment affects all of them. Only
ratios within a run are judged, most of them of CPU time, which other processes hardly change.
"""
