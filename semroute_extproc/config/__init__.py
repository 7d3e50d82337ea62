"""The configuration as a whole: its root model, its cross-checks, and where it is read from."""
