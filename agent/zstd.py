"""zstd as this host has it: Python's own module (3.14 and newer), the library through ctypes, or the program.

Owns finding one and unpacking with it. Packs nothing: that is the migrator's, which has a package for it. Each piece is
a zstd frame of its own whose size is known beforehand, so that nothing is ever unpacked beyond it, whatever it claims.

A relay imports this while somebody waits, so nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Unpack = Callable[[memoryview, int], memoryview]
    """From one zstd frame, and how many bytes it must give, to those bytes: good until the next call."""

LIBRARY = "libzstd.so.1"
LARGEST = 1 << 20
"""Bytes that one piece unpacks to at most."""


class Damaged(Exception):
    """What came is no zstd frame of the announced size, or its checksum is wrong."""


def ways() -> dict[str, Callable[[], Unpack]]:
    """Every way there may be, the best one first; what a name stands for raises ImportError or OSError where it isn't.

    1 GiB of a Python heap in pieces of 256 KiB, one core: module and library 1.5 GiB/s, program 0.08 GiB/s.
    """
    return {"module": _module, "library": _library, "program": _program}


def find() -> tuple[str, Unpack | None]:
    """Which way this host has, and how to unpack with it; "" and None where there is none."""
    for name, make in ways().items():
        try:
            return name, make()
        except (ImportError, OSError, AttributeError):
            continue
    return "", None


def _module() -> Unpack:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]

    def unpack(data: memoryview, size: int) -> memoryview:
        try:
            one = zstd.ZstdDecompressor()
            plain = one.decompress(data, size + 1)
        except (zstd.ZstdError, EOFError) as error:
            raise Damaged(str(error)) from None
        if len(plain) != size or not one.eof or one.unused_data:
            raise Damaged(f"it unpacks to another size than the {size} bytes that were announced")
        return memoryview(plain)

    return unpack


def _library() -> Unpack:
    import ctypes

    library = ctypes.CDLL(LIBRARY)
    library.ZSTD_createDCtx.restype = ctypes.c_void_p
    library.ZSTD_decompressDCtx.restype = ctypes.c_size_t
    library.ZSTD_decompressDCtx.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t
    ]  # fmt: skip
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    context = library.ZSTD_createDCtx()
    if not context:
        raise OSError(f"{LIBRARY} has no memory")
    room = bytearray(LARGEST)
    into = ctypes.byref((ctypes.c_char * LARGEST).from_buffer(room))
    view = memoryview(room)

    def unpack(data: memoryview, size: int) -> memoryview:
        packed = ctypes.byref((ctypes.c_char * len(data)).from_buffer(data))
        done = library.ZSTD_decompressDCtx(context, into, size, packed, len(data))
        if library.ZSTD_isError(done):
            raise Damaged(library.ZSTD_getErrorName(done).decode())
        if done != size:
            raise Damaged(f"it unpacks to {done} bytes instead of the {size} that were announced")
        return view[:size]

    return unpack


def _program() -> Unpack:
    import shutil

    found = shutil.which("zstd")
    if found is None:
        raise OSError("there is no zstd")
    program = found

    def unpack(data: memoryview, size: int) -> memoryview:
        """One process a piece: the program fills its buffer before it writes, and the last page would wait in it."""
        # a file, not a pipe: the program may write before it has read everything, and nobody would read it
        packed = os.memfd_create("migrate-zstd")
        reading, writing = os.pipe()
        try:
            os.write(packed, data)
            os.lseek(packed, 0, os.SEEK_SET)
            actions = [
                (os.POSIX_SPAWN_DUP2, packed, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ]
            pid = os.posix_spawn(program, [program, "-d", "-c", "-q", "-"], os.environ, file_actions=actions)
            os.close(writing)
            writing = -1
            plain = bytearray()
            while len(plain) <= size and (more := os.read(reading, size + 1 - len(plain))):
                plain += more
        finally:
            for descriptor in (packed, reading, writing):
                if descriptor >= 0:
                    os.close(descriptor)
        if os.waitpid(pid, 0)[1] or len(plain) != size:
            raise Damaged(f"zstd does not make {size} bytes of it")
        return memoryview(plain)

    return unpack
