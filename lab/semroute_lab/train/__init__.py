"""Training: declared data to a published bundle. Needs the extra `train`; serving never imports it.

`recipe` is one run. It uses, in order: `spec`, `sources`, `datasets` and `logs`; `bert`, `model`, `fit` and
`fill`; `bundling`, `graphs` and `card`.
"""
