"""One harness under atheris, in a process of its own: `python -m tests.fuzz.guided NAME SECONDS RUNS WORK`.

The only door to atheris. What the parsers do is seen because they are imported here, instrumented.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["agent", "migrator"]):
    from tests.fuzz import table

from tests.fuzz.limits import ROOM, SECONDS, less_memory


def main(name: str, seconds: str, runs: str, work: str) -> None:
    """Does not return: libFuzzer ends the process, with 0 where nothing was found."""
    harness = table.BY_NAME[name]
    corpus = Path(work) / "corpus"
    corpus.mkdir()
    for seed in harness.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    arguments = [
        sys.argv[0], f"-max_len={harness.longest}", f"-max_total_time={seconds}", f"-runs={runs}",
        f"-timeout={SECONDS:.0f}", f"-rss_limit_mb={2 * ROOM >> 20}", f"-artifact_prefix={work}/",
        "-print_final_stats=1", "-verbosity=1", str(corpus),
    ]  # fmt: skip
    os.environ["PYTHONUNBUFFERED"] = "1"
    with less_memory():
        atheris.Setup(arguments, harness.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
