"""From request bytes to an outcome: the pipeline, its driver and the shadow policies."""
