"""agent/secrecy.py, and that each process that memory goes through keeps it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_DUMP = "print(__import__('resource').getrlimit(4)[0], open('/proc/self/coredump_filter').read().strip())"
DUMPS = f"ulimit -S -c unlimited 2>/dev/null; echo 0x33 >/proc/self/coredump_filter; exec {sys.executable} -c"


@pytest.mark.parametrize("of", ["agent import secrecy as s", "migrator import channel as s"])
def test_it_is_kept_by_what_is_started(of: str) -> None:
    assert resource.RLIMIT_CORE == 4, "of what is asked for below"
    inner = f"import subprocess, sys; from {of}; s.no_core_dumps(); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    for words, wanted in (((inner, NO_DUMP), "0 00000000"), ((NO_DUMP,), "00000033")):
        command = ["sh", "-c", f'{DUMPS} "$@"', "sh", *words]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert said.strip().endswith(wanted)


@pytest.mark.parametrize("role", ["serve", "relay"])
def test_the_agent_and_its_relays_leave_no_memory_in_a_core_dump(role: str) -> None:
    words = {"serve": ["serve", "--build", "x"], "relay": ["relay", "/nowhere", "pages"]}[role]
    watched = (
        "import os, sys; sys.argv = ['agent', *sys.argv[1:]]; from agent.__main__ import main; "
        f"from agent import bulk, server; end = lambda *_: [{NO_DUMP}, sys.stdout.flush(), os._exit(0)]; "
        "bulk.relay = server.serve = end; main()"
    )
    said = subprocess.run(
        ["sh", "-c", f'{DUMPS} "$@"', "sh", watched, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "0 00000000"
