"""The complete configuration: its root model, its cross-checks and its sources."""
