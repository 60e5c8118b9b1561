"""What is written down about a lab."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from labkit import cgroup, cli, processes, record
from labkit.run import LabError


def a_lab(name: str = "one", process: processes.Identity | None = None) -> record.Lab:
    """A lab of which this very process plays the hosts."""
    hosts = {host: record.Host(host, 1234, process) for host in record.HOSTS}
    return record.Lab(name, "netns", hosts, is_ready=True)


def test_a_record_comes_back_as_it_was_saved() -> None:
    lab = a_lab(process=processes.identity(os.getpid()))
    lab.project = "digest"
    lab.save()
    assert record.load("one") == lab
    assert record.load("two") is None


def test_the_state_follows_the_processes() -> None:
    us = processes.identity(os.getpid())
    lab = a_lab(process=us)
    assert lab.state == "up"
    lab.hosts["beta"].process = processes.Identity(us.pid, us.start - 1, us.boot)
    assert lab.state == "partial"
    lab.hosts["alpha"].process = None
    assert lab.state == "down"
    lab.save()
    assert lab.state == "partial"  # something is left to clear


def test_a_lab_whose_start_was_cut_short_is_not_up() -> None:
    lab = a_lab(process=processes.identity(os.getpid()))
    lab.is_ready = False
    assert lab.state == "partial"


def test_status_says_all_that_a_test_needs_to_get_in(capsys: pytest.CaptureFixture[str]) -> None:
    a_lab(process=processes.identity(os.getpid())).save()
    assert cli.print_status("one", as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["backend"], said["state"]) == ("one", "netns", "up")
    assert set(said["hosts"]) == {"alpha", "beta"}
    wanted = {"state", "control_address", "control_port", "user", "private_key", "known_hosts", "private_address"}
    assert wanted <= set(said["hosts"]["alpha"])


def test_a_lab_that_is_not_there_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.print_status("one", as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {"name": "one", "state": "down", "hosts": {}}
    with pytest.raises(LabError, match="lab 'one' is down"):
        record.must_run("one")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "."])
def test_a_name_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(LabError, match="not a lab's name"):
        record.folder_of(name)


@pytest.mark.parametrize(
    ("mounts", "place"),
    [
        ("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup"),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            "/sys/fs/cgroup/unified",
        ),
    ],
)
def test_cgroup_v2_is_found_wherever_it_is_mounted(mounts: str, place: str) -> None:
    assert cgroup.mount_point(mounts) == Path(place)


def test_a_machine_without_cgroup_v2_is_told_what_to_do() -> None:
    with pytest.raises(LabError) as caught:
        cgroup.mount_point("proc /proc proc rw 0 0\n")
    assert "mount -t cgroup2" in caught.value.hint
