"""Ways to fine-tune by name. Each file says what it trains, with which rate (`lr`) and for how many epochs (`EPOCHS`) by default.

STARTS_AS_PRETRAINED: whether the model computes at the start what the pretrained one does. tests/contract/ holds a method to it.
"""

METHODS = {
    "full": "minift.methods.full:full",
    "partial": "minift.methods.full:partial",
    "probe": "minift.methods.probe:probe",
    "lora": "minift.methods.lora:lora",
    "dora": "minift.methods.dora:dora",
    "ia3": "minift.methods.ia3:ia3",
    "bitfit": "minift.methods.bitfit:bitfit",
    "houlsby": "minift.methods.houlsby:houlsby",
    "pfeiffer": "minift.methods.pfeiffer:pfeiffer",
    "prefix": "minift.methods.prefix:prefix",
    "prompt": "minift.methods.prompt:prompt",
}
