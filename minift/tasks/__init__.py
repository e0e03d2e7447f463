"""Tasks by the names of the ecosystem; one task = one file. FLAGS names their flags, which need no torch."""

TASKS = {
    "text-classification": "minift.tasks.text_classification:TextClassification",
    "image-classification": "minift.tasks.image_classification:ImageClassification",
    "masked-lm": "minift.tasks.masked_lm:MaskedLM",
}
FLAGS = {
    "text-classification": "minift.tasks.flags:TextClassificationFlags",
    "image-classification": "minift.tasks.flags:ImageClassificationFlags",
    "masked-lm": "minift.tasks.flags:MaskedLMFlags",
}
