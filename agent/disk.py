"""What is on disk when a call returns. Knows nothing of what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Union


def to_disk(path: Union[str, Path]) -> None:
    """A file's content, or a directory's names: on return a power cut does not take it away. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
