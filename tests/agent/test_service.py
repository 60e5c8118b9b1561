"""Which unit of systemd a tree is in, what systemd would do about its end, and what it is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import process, service
from agent.service import Home
from tests.children import child


@pytest.mark.parametrize(("text", "found"), [
    ("0::/system.slice/redis-server.service\n", Home("redis-server.service", "", "/system.slice/redis-server.service")),
    ("12:pids:/system.slice/a.service\n1:name=systemd:/system.slice/b.service\n",
     Home("b.service", "", "/system.slice/b.service")),
    ("0::/system.slice/docker.service/init.scope\n", Home("docker.service", "", "/system.slice/docker.service")),
    ("0::/system.slice/a.service/migrating-7\n", Home("a.service", "", "/system.slice/a.service")),
    ("0::/user.slice/user-0.slice/session-3.scope\n",
     Home("session-3.scope", "", "/user.slice/user-0.slice/session-3.scope")),
    ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n",
     Home("x.service", "user@1000.service", "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service")),
    ("0::/system.slice/migrated-a.scope\n", Home("migrated-a.scope", "", "/system.slice/migrated-a.scope")),
    ("0::/\n", Home("")), ("", Home("")), ("nonsense", Home("")),
])  # fmt: skip
def test_the_unit_of_a_cgroup(text: str, found: Home) -> None:
    assert service.home(text) == found


def test_the_properties_of_several_units() -> None:
    output = "Id=a.service\nMainPID=71\nExecStop={ path=/a ; argv[]=/a b=c }\n\nMainPID=0\nId=b.service\n\n\n"
    assert service.parse_show(output) == [
        {"Id": "a.service", "MainPID": "71", "ExecStop": "{ path=/a ; argv[]=/a b=c }"},
        {"Id": "b.service", "MainPID": "0"},
    ]
    assert service.parse_show("") == []


@pytest.mark.parametrize(
    ("word", "pid"), [("71", 71), ("0", 0), ("", 0), ("=7", 0), ("²", 0), ("9" * 5000, 0), ("-7", 0)]
)
def test_the_main_process(word: str, pid: int) -> None:
    assert service.main_of({"MainPID": word}) == pid


@pytest.mark.parametrize(("text", "value"), [
    ("800ms", 800_000), ("1s", 1_000_000), ("1.500s", 1_500_000), ("1min 30s", 90_000_000), ("2h", 7_200_000_000),
    ("55us", 55), ("infinity", None), ("", None), ("[not set]", None), ("7 days", None),
    ("1e999s", None), ("infs", None), ("nans", None), ("-1s", None),
])  # fmt: skip
def test_time_spans(text: str, value: int | None) -> None:
    assert service.microseconds(text) == value


def test_limits_are_given_as_they_are_set() -> None:
    shown = {
        "MemoryMin": "0", "MemoryHigh": "infinity", "MemoryMax": "209715200", "CPUWeight": "[not set]",
        "CPUQuotaPerSecUSec": "55ms", "CPUQuotaPeriodUSec": "20ms", "TasksMax": "50", "IOWeight": "50",
        "AllowedCPUs": "", "KillSignal": "15", "TimeoutStopUSec": "1min 30s",
    }  # fmt: skip
    assert service.limits(shown) == (
        "MemoryMax=209715200", "CPUQuotaPeriodSec=20ms", "TasksMax=50", "IOWeight=50", "TimeoutStopSec=1min 30s",
        "CPUQuota=5.5%",
    )  # fmt: skip
    assert service.limits({"KillSignal": "3", "CPUQuotaPerSecUSec": "2s"}) == ("KillSignal=3", "CPUQuota=200%")


def with_systemctl(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str, cgroup: str = "/x.service") -> None:
    """A systemctl of our own, on a host that looks like one with systemd, with every task in one unit."""
    program = directory / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(service, "SYSTEMCTL", str(program))
    monkeypatch.setattr(service, "SYSTEMD", str(directory))
    where = service.home(f"0::{cgroup}")
    monkeypatch.setattr(service, "_home_of", lambda pid: where)


SHOWN = r"""
echo Id=x.service; echo "MainPID=$(cat "$MAIN")"
printf 'Restart=on-failure\nOnFailure=alarm.service\nOnSuccess=next.service\nExecStopPost={ path=/a }\n'
printf 'FailureAction=none\nRestartForceExitStatus=\nTriggeredBy=x.socket\nUpheldBy=y.target\n'
printf 'UnitFileState=enabled\nTasksMax=9\nIOReadBandwidthMax=/dev/vda 1000000\nSyslogIdentifier=app\n'
"""


def test_what_is_told_of_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child("ready()", tmp_path) as pid:
        (tmp_path / "main").write_text(str(pid))
        monkeypatch.setenv("MAIN", str(tmp_path / "main"))
        with_systemctl(tmp_path, monkeypatch, SHOWN)
        (unit,) = process.inspect(pid).units
    assert (unit.name, unit.pids, unit.main, unit.others, unit.manager, unit.answered) == (
        "x.service", (pid,), pid, (), "", True,
    )  # fmt: skip
    assert unit.reacts == ("Restart=on-failure", "OnFailure=alarm.service", "ExecStopPost=")
    assert (unit.on_success, unit.starters) == (("next.service",), ("x.socket", "y.target"))
    assert (unit.at_boot, unit.identifier) == (True, "app")
    assert (unit.limits, unit.local) == (("TasksMax=9",), ("IOReadBandwidthMax=/dev/vda 1000000",))


@pytest.mark.parametrize(("script", "main"), [
    ('echo "$@" >&2; echo Id=x.service; echo MainPID=1', False),
    ("exit 1", True),  # systemd does not answer: a root in a service is taken for its main process
])  # fmt: skip
def test_the_main_process_of_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, main: bool) -> None:
    with child("ready()", tmp_path) as pid:
        with_systemctl(tmp_path, monkeypatch, script)
        (unit,) = process.inspect(pid).units
        assert unit.main == (pid if main else 0)
        assert unit.answered is not main


@pytest.mark.parametrize("cgroup", ["/user.slice/session-3.scope", "/system.slice/run-u7.scope"])
def test_a_scope_has_no_main_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str) -> None:
    with child("ready()", tmp_path) as pid:
        with_systemctl(tmp_path, monkeypatch, "exit 1", cgroup)
        (unit,) = process.inspect(pid).units
        assert unit.main == 0


@pytest.mark.parametrize("started", [True, False])
def test_a_unit_of_a_users_own_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    """Its main process is known by its parent: that systemd."""
    with child("ready()", tmp_path) as pid:
        keeper = process.read_stat(pid).ppid if started else 1
        script = f"echo Id=user@7.service; echo MainPID={keeper}; echo Restart=always"
        with_systemctl(tmp_path, monkeypatch, script, "/user.slice/user@7.service/app.slice/x.service")
        (unit,) = process.inspect(pid).units
        assert (unit.name, unit.manager, unit.main) == ("x.service", "user@7.service", pid if started else 0)
        assert unit.reacts == ()


def test_without_systemd_there_are_no_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child("ready()", tmp_path) as pid:
        with_systemctl(tmp_path, monkeypatch, "exit 1")
        monkeypatch.setattr(service, "SYSTEMD", str(tmp_path / "none"))
        assert process.inspect(pid).units == ()
        assert service.active(["x.service"]) == ()


def test_active_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their order: an alias has another Id than it was asked for by."""
    script = r"printf 'Id=z.service\nActiveState=active\n\nActiveState=failed\n\nActiveState=inactive\n'"
    with_systemctl(tmp_path, monkeypatch, script)
    assert service.active(["c.scope", "b.service", "a.service"]) == ("a.service",)
    assert service.active([]) == ()


def test_what_systemctl_says_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_systemctl(tmp_path, monkeypatch, "echo first >&2; echo Access denied >&2; exit 1")
    with pytest.raises(service.ServiceError, match="systemctl daemon-reload: Access denied"):
        service.run("daemon-reload")
    monkeypatch.setattr(service, "SYSTEMCTL", str(tmp_path / "none"))
    with pytest.raises(service.ServiceError, match="No such file"):
        service.run("daemon-reload")
