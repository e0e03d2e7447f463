"""Penalties by name: what `--penalty` adds to the loss. Each file holds one, its options are the parameters that have a default."""

PENALTIES = {
    "l2sp": "minift.penalties.l2sp:L2SP",
    "ewc": "minift.penalties.ewc:EWC",
    "mixout": "minift.penalties.mixout:Mixout",
    "distill": "minift.penalties.distill:Distill",
}
