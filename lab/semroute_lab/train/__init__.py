"""Training: declared data to a published bundle. Needs the extra `train`; serving never imports it.

`recipe` is one run, in order: `spec` and `sources`, `datasets` and `logs`, `tune`, `fit`, `fill`,
`calibrate`, `bundling`, `graphs`, `publish`, and the `card`.
"""
