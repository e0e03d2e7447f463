"""What holds for all tests."""

import gc
import os
import signal

# Before torch is imported, and for every process that a test starts: tensors of a few numbers gain nothing from threads, which on a
# busy machine wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # of the terminal of whoever starts the suite; what is printed here is printed to a file


def pytest_configure():
    """A shell that starts the suite in the background lets it ignore Ctrl-C, and every process that a test starts would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now stays to the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
