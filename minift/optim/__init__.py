"""Optimisers by name; each file holds one update rule, its options are the parameters that have a default."""

OPTIMIZERS = {
    "adamw": "minift.optim.adamw:AdamW",
    "sgd": "minift.optim.sgd:SGD",
}
