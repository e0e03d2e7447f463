"""What holds for all tests."""

import gc


def pytest_collection_finish():
    """What is imported by now stays to the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
