"""The machines' initrd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from labkit import initrd

DEPENDENCIES = """\
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
"""


def test_modules_come_after_what_they_need_and_built_in_ones_not_at_all() -> None:
    assert initrd.needed_modules(DEPENDENCIES, ("virtio_pci", "virtio_net", "virtio_rng", "failover")) == [
        "kernel/net/core/failover.ko.xz",
        "kernel/drivers/net/net_failover.ko.xz",
        "kernel/drivers/net/virtio_net.ko.xz",
        "kernel/drivers/char/hw_random/virtio-rng.ko.xz",
    ]


def test_the_archive_is_made_of_whole_words() -> None:
    archive = initrd.cpio({"a": (0o100644, b"12345"), "folder": (0o040755, b"")})
    assert len(archive) % 4 == 0
    assert archive.count(b"070701") == 3
    assert archive.startswith(b"070701")
    assert b"TRAILER!!!\0" in archive


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed: nothing to compare with")
def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    archive = initrd.cpio({"folder": (0o040755, b""), "folder/file": (0o100640, b"content"), "last": (0o100644, b"x")})
    subprocess.run(["cpio", "--extract", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "folder/file").read_bytes() == b"content"
    assert (tmp_path / "folder/file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "last").read_bytes() == b"x"


def test_the_first_program_is_valid_shell() -> None:
    subprocess.run(["sh", "-n"], input=initrd.INIT.encode(), check=True)
