"""The `semroute` command line: its commands, and the code of explain, check and score."""

import os
import signal
import sys

if sys.argv[1:2] == ["serve"]:
    # Before the imports and the models, which take seconds: a reload must not end the process, and there is
    # nothing to drain yet. As process 1 of a container it would ignore SIGTERM without a handler.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    # The supervisor starts its workers with SIGHUP blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

from semroute_extproc.cli.commands import main as main
