"""Training: declared data to a published bundle. Needs the extra `train`; serving never imports it.

In reading order:

    recipe      one run from the data to the bundle
    spec        what a bundle is made from, as data (`bundles/*.toml`)
    sources     the declared data sets: licence, use, reader
    datasets    examples, and the rules that keep the wrong ones out of a fit
    logs        a user's own logs as training data
    labels      outcomes to targets (Hybrid LLM, RouteLLM)
    quality     an answer to a score (exact, graded, preference, BARTScore)
    checkpoint  the base checkpoint, fetched and checked
    bert, model the encoder and its heads
    tune, fit   fine-tuning, restartable; the loss and the heads on fixed states
    fill        the parts of the heads that are computed: table, memory, calibration of experts
    calibrate   temperatures, Platt scaling, the threshold of the unknown
    bundling    manifest, fp32 graph, parity
    smoothing, rounding, graphs   the served graphs
    publish     the published directory
    assess      every reported set, as one JSON document
    card        that document as CARD.md (`cards/bundle.md.j2`)
    cli         `semroute train` and `semroute bundle`
"""
