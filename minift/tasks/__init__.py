"""Tasks by the names of the ecosystem; one task = one file: what it reads, head, loss, metric, decode."""

TASKS = {
    "text-classification": "minift.tasks.text_classification:TextClassification",
    "image-classification": "minift.tasks.image_classification:ImageClassification",
}
