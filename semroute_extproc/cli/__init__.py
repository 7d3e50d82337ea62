"""The command line `semroute`: commands, and what explain, check and score do."""

from semroute_extproc.cli.commands import main as main
