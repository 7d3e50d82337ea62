"""Routing strategies, one file for each idea: its settings, artifact, scorer and loader."""
