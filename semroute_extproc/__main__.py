"""`python -m semroute_extproc` is `semroute`."""

from semroute_extproc.cli import main

if __name__ == "__main__":
    main(prog_name="semroute")
