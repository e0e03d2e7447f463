"""minift: fine-tuning from scratch in PyTorch, each mechanism proved equal to its reference.

import minift

model = minift.finetune(train="reviews.csv", method="lora", epochs=3)    # the flags of train.py
model.predict(["Exactly what I needed, and a day early."])               # [{"label": "positive", "score": ...}]
model = minift.load("runs/reviews-minilm-l6-lora")                       # later, from the run's directory
"""

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "finetune", "load"]

# Imported when first used, so that `import minift` needs no torch
LATER = {"UserError": "minift.errors:UserError", "finetune": "minift.finetuned:finetune", "load": "minift.finetuned:load"}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name in LATER:
        from minift.errors import look_up

        return look_up(LATER, name, "minift")
    raise AttributeError(f"module 'minift' has no attribute {name!r}")
