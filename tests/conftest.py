"""What holds for all tests."""

import gc
import signal


def pytest_configure():
    """A shell that starts the suite in the background lets it ignore Ctrl-C, and every process that a test starts would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now stays to the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
