"""Kinds of obstacles: the systemd unit that a tree belongs to, on either host."""

from __future__ import annotations

from migrator.kinds import Kind

ROWS = (
    Kind(
        "unit", "systemd would start another one, or act otherwise, when it has gone from its unit",
        "{detail} is the main process of this systemd unit, and systemd would act when it has gone ({reacts})",
        "--unit moves the unit: it ends here, and nothing is done about that",
        "systemd watches the main process of a service. When that vanishes here Restart= starts another one, and then "
        "there are two; or OnFailure= and ExecStopPost= do what they were made for. With `--unit` a drop-in, gone "
        "again afterwards, keeps systemd from all of it, and the process gets a scope with the unit's limits on the "
        "target.",
    ),
    Kind(
        "unit-fails", "its unit is called failed when it has gone",
        "{detail} is the main process of this systemd unit, which is called failed here then",
        "--unit moves the unit: it ends here as if it were stopped",
        "Nothing would be done about it, as the unit has neither Restart= nor OnFailure= nor ExecStopPost=. But "
        "`systemctl --failed` and whoever watches that would see it.",
        stops=False,
    ),
    Kind(
        "unit-shared", "--unit, and it is not all of its unit",
        "the unit's too, and not of the tree: {others}",
        "name the process that is the parent of them all, or leave --unit",
        "With `--unit` the unit ends here, and all that is in it. A tree that is a part of it can be moved without "
        "`--unit` where it does not have the unit's main process, and the unit stays.",
    ),
    Kind(
        "no-unit", "--unit, and it is in no service",
        "it is in {where}, which is no service", "leave --unit",
        "The scope of a login session, or of a program that was started by hand, is no unit that systemd revives or "
        "calls failed: there is nothing to be moved but the process.",
    ),
    Kind(
        "unit-success", "--unit, and its unit starts another one when it ends well",
        "it has OnSuccess={units}, which would be started when its process has gone from here",
        "take OnSuccess= out of the unit's file, and `systemctl daemon-reload`",
        "For systemd a unit that was moved away has ended well. Dependencies, of which OnSuccess= is one, can't be "
        "taken back for a while by a drop-in (systemd.unit(5)).",
    ),
    Kind(
        "unit-triggered", "--unit, and something starts its unit by itself",
        "{starters} would start it here again", "stop that first: systemctl stop {starters}",
        "A socket starts its service when somebody connects, a timer when its time has come, a path when a file is "
        "there, and Upholds= at once: then there are two.",
    ),
    Kind(
        "unit-user", "it is the main process of a unit of a user's own systemd",
        "{detail} is the main process of this unit of {manager}, which may start another one",
        "start the program outside of it, e.g. in a scope by `systemd-run --user --scope`",
        "A user's systemd is another one than the system's, and tells only that user what it is about to do.",
    ),
    Kind(
        "unit-boot", "its unit is enabled, and so starts here again at the next boot",
        "it is enabled: at its next boot this host starts it anew", "afterwards: systemctl disable {name}",
        "A unit that has moved is inactive here, and no more: whatever starts it, starts another process, with what "
        "lies on this host's disk.",
        stops=False,
    ),
    Kind(
        "unit-local", "a limit of its unit names a device of the source",
        "{limits}: it names a device of {here}, and is not taken along",
        "set one there, on the scope that it gets: systemctl set-property --runtime",
        "Limits on block devices go by the device's path. On another host that is another device, or none.",
        stops=False,
    ),
    Kind(
        "unit-taken", "the scope that it is to run in is there on the target",
        "a unit of this name is active there", "see `systemctl status {name}` there; `systemctl stop` ends it",
        "With `--unit` the process of NAME.service runs in migrated-NAME.scope on the target. Mostly such a one was "
        "moved there before.",
    ),
    Kind(
        "unit-active", "a unit of the same name is active on the target",
        "the target has a unit of this name, and it is active", "see whether both may run: `systemctl status {name}`",
        "Two of one service on a host mostly want the same port, socket or files, which other checks find.",
        stops=False,
    ),
    Kind(
        "journal-missing", "its output goes to the journal, and the target has none",
        "its standard output goes to journald, which the target does not have",
        "let its unit write to a file: StandardOutput=append:FILE, and restart it",
        "What a service prints goes to journald by a socket. It is connected anew with the journal of the target, "
        "under the same name; without a journal there the process would have nobody to print to.",
    ),
)  # fmt: skip
