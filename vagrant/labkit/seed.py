"""What makes one host of a lab different from the next: keys, names, addresses.

It is a tar archive that is unpacked over the host's root as it starts: by the boot scripts of a machine,
or before a namespace's init runs. The archive holds names, not numbers, for its owners: `admin` has the
number that the tree gave it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from labkit import record
from labkit.run import run

ROOT_AND_ADMIN = (("root", "root"), ("home/admin", "admin"))


def make_key(path: Path, comment: str) -> str:
    """Makes a key pair; returns the public line."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.with_name(path.name + ".pub").read_text().strip()


def write_all(folder: Path, hosts: Iterable[str]) -> dict[str, str]:
    """Makes the keys, and the archive of each host (HOST.seed); returns the hosts' public keys.

    `id_lab` lets this machine in; each host's users have a key that lets them in on the other.
    """
    lab_line = make_key(folder / "id_lab", "lab")
    user_lines = {host: make_key(folder / f"{host}.user_key", f"root@{host}") for host in hosts}
    host_lines = {host: make_key(folder / f"{host}.host_key", host) for host in hosts}
    authorized = "".join(line + "\n" for line in (lab_line, *user_lines.values()))
    known = "".join(
        f"{host},{record.PRIVATE_ADDRESSES[host]} {without_comment(line)}\n" for host, line in host_lines.items()
    )
    for host in hosts:
        files = {
            "etc/hostname": (0o644, host + "\n"),
            "etc/hosts": (0o644, hosts_file()),
            "etc/ssh/ssh_host_ed25519_key": (0o600, (folder / f"{host}.host_key").read_text()),
            "etc/ssh/ssh_host_ed25519_key.pub": (0o644, host_lines[host] + "\n"),
        }
        for home, _ in ROOT_AND_ADMIN:
            files[f"{home}/.ssh/authorized_keys"] = (0o600, authorized)
            files[f"{home}/.ssh/known_hosts"] = (0o600, known)
            files[f"{home}/.ssh/id_ed25519"] = (0o600, (folder / f"{host}.user_key").read_text())
            files[f"{home}/.ssh/id_ed25519.pub"] = (0o644, user_lines[host] + "\n")
        (folder / f"{host}.seed").write_bytes(archive(files))
    return host_lines


def write_for(lab: record.Lab) -> None:
    """Keys and archives of a lab, and this machine's known_hosts for its control ports."""
    host_lines = write_all(lab.folder, record.HOSTS)
    lines = [
        f"[{record.CONTROL_ADDRESS}]:{host.control_port} {without_comment(host_lines[name])}\n"
        for name, host in lab.hosts.items()
    ]
    lab.known_hosts.write_text("".join(lines))


def hosts_file() -> str:
    """/etc/hosts, the same on both."""
    lines = ["127.0.0.1 localhost"]
    lines += [f"{address} {host}" for host, address in record.PRIVATE_ADDRESSES.items()]
    return "\n".join(lines) + "\n"


def archive(files: dict[str, tuple[int, str]]) -> bytes:
    """A tar archive of these files: path -> (mode, content). What lies in a home belongs to its user."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for home, user in ROOT_AND_ADMIN:
            folder = tarfile.TarInfo(f"{home}/.ssh")
            folder.type, folder.mode, folder.uname, folder.gname = tarfile.DIRTYPE, 0o700, user, user
            tar.addfile(folder)
        for path, (mode, content) in files.items():
            owner = next((user for home, user in ROOT_AND_ADMIN if path.startswith(home + "/")), "root")
            data = content.encode()
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size, entry.uname, entry.gname = mode, len(data), owner, owner
            tar.addfile(entry, io.BytesIO(data))
    return output.getvalue()


def without_comment(public_line: str) -> str:
    """The key's type and the key."""
    return " ".join(public_line.split()[:2])
