"""From request bytes to an outcome: the pipeline, its model catalog and its shadow policies."""
