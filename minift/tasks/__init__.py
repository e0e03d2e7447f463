"""Tasks by the names of the ecosystem; one task = one file. FLAGS names their flags, which need no torch."""

TASKS = {
    "text-classification": "minift.tasks.text_classification:TextClassification",
    "image-classification": "minift.tasks.image_classification:ImageClassification",
    "question-answering": "minift.tasks.question_answering:QuestionAnswering",
}
FLAGS = {
    "text-classification": "minift.tasks.flags:TextClassificationFlags",
    "image-classification": "minift.tasks.flags:ImageClassificationFlags",
    "question-answering": "minift.tasks.flags:QuestionAnsweringFlags",
}
