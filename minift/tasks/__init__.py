"""Tasks by the names of the ecosystem; one task = one file. FLAGS names their flags, which need no torch."""

TASKS = {
    "text-classification": "minift.tasks.text_classification:TextClassification",
    "image-classification": "minift.tasks.image_classification:ImageClassification",
    "token-classification": "minift.tasks.token_classification:TokenClassification",
}
FLAGS = {
    "text-classification": "minift.tasks.flags:TextClassificationFlags",
    "image-classification": "minift.tasks.flags:ImageClassificationFlags",
    "token-classification": "minift.tasks.flags:TokenClassificationFlags",
}
