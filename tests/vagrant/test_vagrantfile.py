"""The Vagrantfile describes the same two hosts; and nothing in the lab names a package mirror."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from labkit import record, tree
from labkit.cache import REPOSITORY

VAGRANT = REPOSITORY / "vagrant"


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed; `vagrant/lab test` installs it")
def test_vagrant_finds_it_valid(tmp_path: Path) -> None:
    places = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "state")}
    done = subprocess.run(
        ["vagrant", "validate"], cwd=VAGRANT, env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_it_has_the_labs_hosts_at_the_labs_addresses() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    for host, address in record.PRIVATE_ADDRESSES.items():
        assert f'"{host}" => "{address}"' in text
    assert 'path: "provision.sh", args: ["vagrant"]' in text
    assert "    vagrant) " in tree.PROVISION.read_text()


def test_no_mirror_is_named() -> None:
    # an interpreter that runs the lab meanwhile writes in __pycache__, under names that do not last
    others = {".vagrant", "__pycache__"}
    own = [path for path in VAGRANT.rglob("*") if path.is_file() and not others & set(path.parts)]
    for path in own:
        assert not re.search(r"(https?|ftp)://", path.read_text()), path


def test_the_provisioning_script_is_valid_shell() -> None:
    subprocess.run(["sh", "-n", tree.PROVISION], check=True)
