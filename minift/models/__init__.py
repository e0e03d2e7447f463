"""Architectures by name; each file declares config, modules, sites, stages and name tables."""

MODELS = {
    "bert": "minift.models.bert:Bert",
    "roberta": "minift.models.roberta:Roberta",
    "xlm-roberta": "minift.models.roberta:Roberta",
    "gpt2": "minift.models.gpt2:Gpt2",
    "resnet": "minift.models.resnet:ResNet",
    "efficientnet": "minift.models.efficientnet:EfficientNet",
}
