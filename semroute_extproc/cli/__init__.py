"""The `semroute` command line: its commands, and the code of explain, check and score."""

from semroute_extproc.cli.commands import main as main
