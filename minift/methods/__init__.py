"""Ways to fine-tune by name. Each file says what it trains, with which learning rate (`lr`) and for how many epochs (`EPOCHS`) by
default. STARTS_AS_PRETRAINED: whether the model computes at the start what the pretrained one does.

A file may also hold SITES, the roles that an empty option `sites` stands for (the first entry whose roles a body has);
NAMED_SITES, words for other roles; LR_FACTORS, last segment of a parameter's name -> the option that holds the factor on its
learning rate. A wrapper may define `term`, which is added to the loss. tests/contract/ holds every method to what it says. A method
that is no row of this table is used as `--method path/to/file.py:name`.
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
