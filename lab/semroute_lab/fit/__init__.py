"""Fitting artifacts of strategies and calibrating scores: `semroute fit` and `semroute calibrate`.

Numpy only, so that it runs wherever the server does; no strategy needs the extra `train`.

    outcomes       labelled prompts from files, and their embeddings
    similarity     labelled prompts as they are
    factorization  vectors of models and a projection of prompts, by gradient descent
    clusters       K-means, the learned map, and names for people
    settle         a threshold for a wanted share or quality drop, and how sure it is
    calibrate      the same for a file of prompts
"""
