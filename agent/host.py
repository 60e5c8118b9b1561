"""What this host is and can do: kernel, memory, criu. Knows no process and no other host."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import platform
import shutil
import tempfile
from pathlib import Path

from agent import announce, conditions, floating, guard, iptables, journald, process, service, userfault, warden, zstd
from agent.criu import Criu
from agent.protocol import HostFacts, Probe

_CPUINFO = "cpuinfo.img"


async def facts(criu: Criu, probe: Probe) -> HostFacts:
    """Ask kernel and criu. Raises ValueError when `probe.cpuinfo` is no base64."""
    version = await criu.version()
    # at once: each of these runs a criu, and whoever waits for `migrate check` waits for all of them
    criu_check, untracked, cpuinfo, cpu_check = await asyncio.gather(
        criu.check() if version else _nothing(),
        criu.check("mem_dirty_track") if version else _nothing(),
        _cpuinfo(criu) if version and probe.want_cpuinfo else _nothing(),
        _cpu_check(criu, probe.cpuinfo) if version and probe.cpuinfo else _nothing(),
    )
    system = os.uname()
    return HostFacts(
        hostname=system.nodename,
        boot_id=process.boot_id(),
        machine=system.machine,
        kernel=system.release,
        python=platform.python_version(),
        uid=os.geteuid(),
        criu_path=criu.path if version else "",
        criu_version=version,
        criu_check=criu_check,
        dirty_tracking=bool(version) and untracked == "",
        page_size=os.sysconf("SC_PAGE_SIZE"),
        pid_max=int(Path("/proc/sys/kernel/pid_max").read_text()),
        memory_available=memory_available(),
        systemd=service.booted(),
        journal=journald.there(),
        cpuinfo=cpuinfo,
        no_lazy_pages=userfault.available() or warden.available(),
        rsync=shutil.which("rsync") is not None,
        zstd=zstd.find()[0],
        conditions=conditions.of_host(),
        cpu_check=cpu_check,
        addresses=floating.of_host(),
        nft=guard.there(),
        iptables=iptables.there(),
        net_admin=floating.may_change(),
        hardware=announce.hardware(),
        session=tuple(os.environ.get("SSH_CONNECTION", "").split()[::2]),
    )


async def _nothing() -> str:
    return ""


def memory_available() -> int:
    """Bytes that can be used without swapping (MemAvailable of proc_meminfo(5)); 0 where the kernel does not say."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def disk_available(directory: Path) -> int:
    """Bytes that root may still write where this directory is, or will be made."""
    while not directory.exists():
        directory = directory.parent
    status = os.statvfs(directory)
    return status.f_bfree * status.f_frsize


async def _cpuinfo(criu: Criu) -> str:
    with tempfile.TemporaryDirectory(prefix="migrate-cpuinfo-") as name:
        directory = Path(name)
        if not await criu.cpuinfo_dump(directory):
            return ""
        return base64.b64encode((directory / _CPUINFO).read_bytes()).decode("ascii")


async def _cpu_check(criu: Criu, cpuinfo: str) -> str:
    try:
        image = base64.b64decode(cpuinfo, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the source's cpuinfo is no base64: {error}") from None
    with tempfile.TemporaryDirectory(prefix="migrate-cpuinfo-") as name:
        (Path(name) / _CPUINFO).write_bytes(image)
        return await criu.cpuinfo_check(Path(name))
