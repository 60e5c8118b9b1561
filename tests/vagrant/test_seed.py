"""Keys and names of the hosts."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from labkit import record, seed


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    """What is in the archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def content(archive: bytes, name: str) -> str:
    """The text of a file in the archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


def test_what_is_in_a_home_belongs_to_its_user() -> None:
    found = members(seed.archive({"etc/hostname": (0o644, "x\n"), "home/admin/.ssh/id_ed25519": (0o600, "secret")}))
    assert found["home/admin/.ssh/id_ed25519"].uname == "admin"
    assert found["home/admin/.ssh/id_ed25519"].mode == 0o600
    assert found["home/admin/.ssh"].mode == 0o700
    assert found["etc/hostname"].uname == "root"


def test_the_hosts_know_each_other_and_let_each_other_in(tmp_path: Path) -> None:
    host_lines = seed.write_all(tmp_path, record.HOSTS)
    assert host_lines["alpha"] != host_lines["beta"]
    seeds = {host: (tmp_path / f"{host}.seed").read_bytes() for host in record.HOSTS}
    for host, other in (("alpha", "beta"), ("beta", "alpha")):
        for home in ("root", "home/admin"):
            known = content(seeds[host], f"{home}/.ssh/known_hosts")
            key = seed.without_comment(host_lines[other])
            assert f"{other},{record.PRIVATE_ADDRESSES[other]} {key}\n" in known
            theirs = content(seeds[other], "root/.ssh/id_ed25519.pub")
            assert theirs in content(seeds[host], f"{home}/.ssh/authorized_keys")
            assert (tmp_path / "id_lab.pub").read_text() in content(seeds[host], f"{home}/.ssh/authorized_keys")
        assert content(seeds[host], "etc/hostname") == f"{host}\n"
        assert f"{record.PRIVATE_ADDRESSES[other]} {other}\n" in content(seeds[host], "etc/hosts")


def test_the_machine_knows_the_control_ports(place: Path) -> None:
    lab = record.Lab("one", "vm", {name: record.Host(name, 40000 + n) for n, name in enumerate(record.HOSTS)})
    lab.save()
    seed.write_for(lab)
    found = subprocess.run(
        ["ssh-keygen", "-F", "[127.0.0.1]:40001", "-f", lab.known_hosts], capture_output=True, text=True, check=True
    )
    beta = (lab.folder / "beta.host_key.pub").read_text().split()[1]
    assert beta in found.stdout
