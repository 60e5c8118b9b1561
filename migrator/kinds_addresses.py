"""Rows of the table of obstacles: addresses that move with the process."""

from migrator.kinds import Kind

ROWS = (
    Kind(
        "move-not-here", "an address that shall move is not on this host",
        "this host does not have it{where}", "`ip address` lists what there is",
        "`--move-address` takes an address off this host and puts it on the target, within the commit.",
    ),
    Kind(
        "move-there", "an address that shall move is on the target already",
        "it has this address already", "there: `ip address delete` it, if nothing needs it",
        "Two hosts with one address take each other's packets. The target gets it when the process does.",
    ),
    Kind(
        "move-elsewhere", "an address that shall move is on a third host as well",
        "another host on the link there says that it has it (hardware address {hardware})",
        "take it off that host: `ip neigh` or the switch says which one it is",
        "The target asks on its link who has the address. Only the source may answer: with two, clients are led to "
        "whichever has spoken last.",
    ),
    Kind(
        "move-interface", "no interface of the target is known for an address that shall move",
        "none of its interfaces, or more than one, is in the same subnet", "--move-address {address}@{here}:INTERFACE",
        "Without a name the address goes to the one interface of the target that has an address in the same subnet.",
    ),
    Kind(
        "move-primary", "other addresses would go together with one that shall move",
        "the kernel takes {others} away with it", "sysctl net.ipv4.conf.{interface}.promote_secondaries=1, or give "
        "the address a prefix of its own, e.g. /32",
        "It is the first of its subnet on its interface, and the others there are secondary: they go when it goes. "
        "A service's own address is better added last, or as a /32.",
    ),
    Kind(
        "move-session", "an address that shall move carries the SSH session",
        "the SSH session of this migration, or your own, goes over it", "let ssh use another address of the host",
        "Taken off in the commit, it would take the connection along by which both hosts are kept in step.",
    ),
    Kind(
        "no-net-admin", "addresses and rules can't be changed on a host",
        "CAP_NET_ADMIN is missing", "run it as root, in a container with that capability",
        "To move an address takes the right to change the network's settings, on both hosts.",
    ),
    Kind(
        "move-program", "a program that an address is moved with is missing",
        "is not installed", "install it, e.g. `apt install {package}`",
        "`ip` moves the address. `nft`, or `iptables` where there is none, keeps both kernels from answering for the "
        "connections while they are nowhere, which would break them; criu does the same by it.",
    ),
)  # fmt: skip
