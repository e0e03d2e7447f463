"""Tasks by the names of the ecosystem; one task = one file. FLAGS names their flags, which need no torch."""

TASKS = {
    "text-classification": "minift.tasks.text_classification:TextClassification",
    "image-classification": "minift.tasks.image_classification:ImageClassification",
    "token-classification": "minift.tasks.token_classification:TokenClassification",
    "text-regression": "minift.tasks.text_regression:TextRegression",
    "multi-label-classification": "minift.tasks.multi_label_classification:MultiLabelClassification",
    "multi-label-image-classification": "minift.tasks.multi_label_image_classification:MultiLabelImageClassification",
    "masked-lm": "minift.tasks.masked_lm:MaskedLM",
    "question-answering": "minift.tasks.question_answering:QuestionAnswering",
    "causal-lm": "minift.tasks.causal_lm:CausalLM",
    "instruction-tuning": "minift.tasks.instruction_tuning:InstructionTuning",
}
FLAGS = {
    "text-classification": "minift.tasks.flags:TextClassificationFlags",
    "image-classification": "minift.tasks.flags:ImageClassificationFlags",
    "token-classification": "minift.tasks.flags:TokenClassificationFlags",
    "text-regression": "minift.tasks.flags:TextRegressionFlags",
    "multi-label-classification": "minift.tasks.flags:MultiLabelClassificationFlags",
    "multi-label-image-classification": "minift.tasks.flags:MultiLabelImageClassificationFlags",
    "masked-lm": "minift.tasks.flags:MaskedLMFlags",
    "question-answering": "minift.tasks.flags:QuestionAnsweringFlags",
    "causal-lm": "minift.tasks.flags:CausalLMFlags",
    "instruction-tuning": "minift.tasks.flags:InstructionTuningFlags",
}
