"""agent/host.py, with a criu that answers as it is told."""

from __future__ import annotations

import base64
import os
import platform
from pathlib import Path
from typing import cast

import pytest

from agent import host, process, service
from agent.criu import Criu
from agent.protocol import HostFacts, Probe

IMAGE = b"\x01\x02 cpu of the source"


class FakeCriu:
    """criu as far as `facts` asks it."""

    path = "/usr/sbin/criu"

    def __init__(self, *, version: str = "4.1.1", check: str = "", tracking: str = "", describes: bool = True) -> None:
        self._version = version
        self._check = check
        self._tracking = tracking
        self._describes = describes
        self.asked: list[str] = []
        self.compared = b""

    async def version(self) -> str:
        """As told."""
        return self._version

    async def check(self, feature: str = "") -> str:
        """As told."""
        self.asked.append(f"check {feature}".strip())
        return self._tracking if feature == "mem_dirty_track" else self._check

    async def cpuinfo_dump(self, directory: Path) -> bool:
        """Writes, if told so."""
        self.asked.append("cpuinfo dump")
        if self._describes:
            (directory / "cpuinfo.img").write_bytes(IMAGE)
        return self._describes

    async def cpuinfo_check(self, directory: Path) -> str:
        """Remembers."""
        self.asked.append("cpuinfo check")
        self.compared = (directory / "cpuinfo.img").read_bytes()
        return "CPU fpu feature missing"


async def facts(criu: FakeCriu, probe: Probe = Probe()) -> HostFacts:  # noqa: B008  frozen
    """Facts as this criu lets them be."""
    return await host.facts(cast(Criu, criu), probe)


async def test_this_host_is_described() -> None:
    found = await facts(FakeCriu(version="4.2", check="no PTRACE_PEEKSIGINFO"))
    assert (found.hostname, found.machine) == (platform.node(), platform.machine())
    assert (found.kernel, found.python) == (platform.release(), platform.python_version())
    assert (found.uid, found.boot_id) == (os.geteuid(), process.boot_id())
    assert (found.criu_path, found.criu_version, found.criu_check) == ("/usr/sbin/criu", "4.2", "no PTRACE_PEEKSIGINFO")
    assert found.page_size == os.sysconf("SC_PAGE_SIZE")
    assert found.pid_max > os.getpid()
    assert 0 < found.memory_available < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (found.cpuinfo, found.cpu_check) == ("", "")


@pytest.mark.parametrize(("words", "tracking"), [("", True), ("soft-dirty is not supported", False)])
async def test_dirty_tracking_is_what_criu_says(words: str, tracking: bool) -> None:
    assert (await facts(FakeCriu(tracking=words))).dirty_tracking is tracking


async def test_without_criu_nothing_is_asked() -> None:
    criu = FakeCriu(version="")
    found = await facts(criu, Probe(cpuinfo=base64.b64encode(IMAGE).decode(), want_cpuinfo=True))
    assert criu.asked == []
    assert (found.criu_path, found.criu_version, found.dirty_tracking, found.cpuinfo) == ("", "", False, "")


async def test_the_cpu_travels_as_text_and_is_compared_as_it_was() -> None:
    source = await facts(FakeCriu(), Probe(want_cpuinfo=True))
    criu = FakeCriu()
    target = await facts(criu, Probe(cpuinfo=source.cpuinfo))
    assert criu.compared == IMAGE
    assert target.cpu_check == "CPU fpu feature missing"


async def test_a_criu_that_cannot_describe_its_cpu() -> None:
    assert (await facts(FakeCriu(describes=False), Probe(want_cpuinfo=True))).cpuinfo == ""


async def test_garbage_for_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="base64"):
        await facts(FakeCriu(), Probe(cpuinfo="no base64!"))


@pytest.mark.parametrize("there", [True, False])
async def test_systemd_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(service, "SYSTEMD", str(tmp_path if there else tmp_path / "none"))
    assert (await facts(FakeCriu())).systemd is there
