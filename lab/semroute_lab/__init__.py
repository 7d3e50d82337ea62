"""Training, fitting, evaluation and profiling for semroute_extproc."""
