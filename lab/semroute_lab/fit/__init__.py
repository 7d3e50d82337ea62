"""Fitting artifacts of strategies and calibrating scores: `semroute fit` and `semroute calibrate`.

    outcomes       labelled prompts from files, and their embeddings
    similarity     labelled prompts as they are
    factorization  vectors of models and a projection of prompts, by gradient descent
    clusters       K-means, the learned map, and readable names
    settle         a threshold for a wanted share or quality drop, with intervals
    calibrate      the same for a file of prompts
    judge_scores      a configuration's judge asked about many prompts

Torch and the extra `train` are not needed.
"""
