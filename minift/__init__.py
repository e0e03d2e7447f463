"""minift: fine-tuning from scratch in PyTorch, each mechanism proved equal to its reference."""

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name == "load":  # imported when first used, so that `import minift` needs no torch
        from minift.finetuned import load

        return load
    raise AttributeError(f"module 'minift' has no attribute {name!r}")
