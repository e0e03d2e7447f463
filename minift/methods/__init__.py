"""Ways to fine-tune by name; each file says what it trains, with which learning rate and for how many epochs by default."""

METHODS = {
    "full": "minift.methods.full:full",
    "partial": "minift.methods.full:partial",
    "probe": "minift.methods.probe:probe",
}
