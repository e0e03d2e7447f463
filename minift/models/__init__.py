"""Architectures by name; each file declares config, modules, sites, stages and name tables."""

MODELS = {"bert": "minift.models.bert:Bert", "resnet": "minift.models.resnet:ResNet"}
