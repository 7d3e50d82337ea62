"""Training: declared data to a published bundle. Needs the extra `train`; serving never imports it.

In reading order:

    recipe     one run from the data to the bundle
    sources    what each data set holds, its licence, and what it may be used for
    datasets   examples, and the rules that keep the wrong ones out of a fit
    logs       a user's own logs as training data
    labels     outcomes to targets (Hybrid LLM, RouteLLM)
    quality    an answer to a score (exact, graded, preference, BARTScore)
    weights    the base checkpoint, fetched and checked
    model      the encoder and its heads
    losses     one loss over whatever targets a row has
    fit        fine-tuning, restartable
    calibrate  temperatures, Platt scaling, the threshold of the unknown
    export     ONNX graphs, quantisation, parity, the published directory
    assess     every reported set, as one JSON document
    card       that document as CARD.md
    report     what a bundle was trained on, and the writing of its card
    chinese…   the same for the Chinese bundle: network, data, report, card
    cli        `semroute train` and `semroute bundle`
"""
