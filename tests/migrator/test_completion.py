"""Completion in the shells themselves: what bash, zsh and fish make of a line that is half typed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from migrator import arguments, completion

COMMANDS = arguments.commands()
PATIENCE = 60.0
"""Seconds that a shell may take; it takes a tenth of one."""

LINES = [
    ("migrate --comp", "--compress"),
    ("migrate --compress zs", "zstd"),
    ("migrate --compress=zs", "zstd"),
    ("migrate che", "check"),
    ("migrate --namespaces=a", "auto"),
    ("migrate 4711 d", "db2"),
    ("migrate --verify hash 4711 d", "db2"),
    ("migrate 4711 root@d", "db2"),
    ("migrate check --quie", "--quiet"),
    ("migrate check --verify si", "size"),
    ("migrate check 4711 d", "db2"),
    ("migrate recover --target d", "db2"),
    ("migrate explain pid-tak", "pid-taken"),
    ("migrate completion zs", "zsh"),
    ("migrate help downt", "downtime"),
]
"""What is typed, and what the last word then becomes, or the end of it."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with hosts in its SSH configuration, and one that is none but a command."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host db2\n  User x\nHost *.lab d$(touch${IFS}evil)\n")
    return tmp_path


def written(shell: str, path: Path) -> Path:
    path.write_text(completion.script(shell, COMMANDS))
    return path


def test_bash(home: Path) -> None:
    file = written("bash", home / "migrate.bash")
    program = (
        f"source {file}; COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:@'\n"
        'while read -r COMP_LINE; do COMP_POINT=${#COMP_LINE} COMPREPLY=(); _migrate; echo "${COMPREPLY[*]}"; done'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program], input="".join(f"{line}\n" for line, _ in LINES), capture_output=True,
        text=True, check=True, cwd=home, env={**os.environ, "HOME": str(home)}, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout.splitlines() == [word for _, word in LINES]
    assert done.stderr == ""
    assert not (home / "evil").exists()


def test_bash_completes_pids_and_files(home: Path) -> None:
    file = written("bash", home / "migrate.bash")
    (home / "criu-of-mine").touch()
    program = (
        f"source {file}; for COMP_LINE in 'migrate {os.getpid()}' 'migrate check 4 db2 --criu ./criu-of'; do\n"
        'COMP_POINT=${#COMP_LINE} COMPREPLY=(); _migrate 2>/dev/null; echo "${COMPREPLY[*]}"; done'
    )
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, cwd=home, timeout=PATIENCE)
    pids, files = done.stdout.splitlines()
    assert str(os.getpid()) in pids.split()
    assert files == "./criu-of-mine"


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(home: Path) -> None:
    file = written("fish", home / "migrate.fish")
    program = f"source {file}; while read -l line; complete -C $line; echo; end"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], input="".join(f"{line}\n" for line, _ in LINES), capture_output=True,
        text=True, check=True, cwd=home, env={**os.environ, "HOME": str(home)}, timeout=PATIENCE,
    )  # fmt: skip
    answers = [[line.split("\t")[0] for line in answer.splitlines()] for answer in done.stdout.split("\n\n")]
    for (line, word), answer in zip(LINES, answers, strict=False):
        assert any(found.endswith(word) for found in answer), (line, answer)
    assert done.stderr == ""


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh(home: Path) -> None:
    folder = home / "functions"
    folder.mkdir()
    written("zsh", folder / "_migrate")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.environ.update(HOME=str(home), TERM="dumb")
        os.execvp("zsh", ["zsh", "-f", "-i"])
    setup = (
        f"unsetopt zle_bracketed_paste prompt_sp prompt_cr; PROMPT=; fpath=({folder} $fpath)\n"
        'autoload -Uz compinit && compinit -u -D; show() { print -r -- "<<$BUFFER>>"; zle kill-buffer }\n'
        "zle -N show; bindkey '^X^X' show; print READ''Y\n"
    )
    try:
        os.write(terminal, setup.encode())
        until(terminal, r"READY\r\n")
        for line, word in LINES:
            os.write(terminal, f"{line}\t\x18\x18".encode())
            assert until(terminal, r"<<(.*?)>>").rstrip(" =").endswith(word), line
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def until(terminal: int, pattern: str) -> str:
    """Read on until this has come; its first group."""
    text, deadline = "", time.monotonic() + PATIENCE
    while not (found := re.search(pattern, text, re.DOTALL)):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 1.0)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
    return found[1] if found.groups() else ""
