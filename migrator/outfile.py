"""A file that a command writes at its end. That it can be is seen before anything is done; it is replaced as a whole,
so that nobody ever reads half of one. What is no regular file (a pipe, /dev/stdout) is written into.
"""

from __future__ import annotations

import os
import stat
import tempfile

from migrator.errors import UsageError


class Outfile:
    """The file that an option names."""

    def __init__(self, option: str, path: str, mode: int = 0) -> None:
        """`mode`: its permissions; 0: what the umask leaves. Raises UsageError for one that can't be written."""
        self._mode = mode
        self._named = f"{option} {path}"
        try:
            self._path, self._replaced = _looked_at(path)
            if self._replaced:
                os.unlink(self._beside(b""))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._named}: {_words(error)}") from error

    def write(self, content: bytes) -> str:
        """All of it. What went wrong, in words; "" if nothing did: what has been done is not undone for a file."""
        try:
            if self._replaced:
                os.replace(self._beside(content), self._path)
            else:
                with open(self._path, "wb") as file:
                    file.write(content)
        except OSError as error:
            return f"{self._named}: {_words(error)}"
        return ""

    def _beside(self, content: bytes) -> str:
        """A new file beside it, with that in it; its name. Raises OSError."""
        folder, name = os.path.split(self._path)
        descriptor, beside = tempfile.mkstemp(prefix=f".{name[:100]}-", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, self._mode or 0o666 & ~_umask())
                file.write(content)
        except BaseException:
            os.unlink(beside)
            raise
        return beside


def _looked_at(path: str) -> tuple[str, bool]:
    """Where it lies, behind links, and whether it is replaced. Raises OSError, ValueError."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return os.path.realpath(path), True
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(0, "Is a directory")
    return (os.path.realpath(path), True) if stat.S_ISREG(found.st_mode) else (path, False)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
