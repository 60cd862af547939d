"""The failures of Redis commands that callers see, without a Redis library.  (pure)"""

from __future__ import annotations

from typing import Final


class Unavailable(Exception):
    """Redis did not execute the command, or did not confirm it in time, so that its effect is unknown."""


class Unconfirmed(Unavailable):
    """Redis executed the command, but too few replicas confirmed it: if this Redis fails now, the change is lost."""


class CommandRefused(Unavailable):
    """Redis rejected this command with an error. Other commands on the same connection are not affected."""


class WrongType(CommandRefused):
    """A key has another type than the command expects: another program has written it."""


class Impaired(CommandRefused):
    """The command would fail on every node: Redis rejects writes, or no server has the slot. The node stays ready."""


class WrongServer(CommandRefused):
    """The server is not the master. The node closes its connections and resolves its name again."""


# Redis error codes: the kind of failure, and a sentence for publishers and operators. Codes that are not listed concern
# one command only. MOVED, ASK and TRYAGAIN are followed (client.py, pipeline.py) and never arrive here.
ERROR_CODES: Final[dict[str, tuple[type[CommandRefused], str]]] = {
    "READONLY": (WrongServer, "the server is a replica, not the master"),
    "MASTERDOWN": (WrongServer, "the server is a replica that has lost its master"),
    "OOM": (Impaired, "Redis refuses writes, because its memory is full"),
    "MISCONF": (Impaired, "Redis refuses writes, because it cannot write to its disk"),
    "NOREPLICAS": (Impaired, "Redis refuses writes, because too few replicas are connected"),
    "CLUSTERDOWN": (Impaired, "the Redis Cluster has no server for this slot"),
    "LOADING": (CommandRefused, "Redis is loading its data"),
    "BUSY": (CommandRefused, "Redis is busy with a script"),
    "UNKILLABLE": (CommandRefused, "Redis is busy with a script"),
    "NOAUTH": (CommandRefused, "Redis asks for a password: put it into the Redis URL"),
    "WRONGPASS": (CommandRefused, "Redis refuses the user or password of the Redis URL"),
    "NOPERM": (CommandRefused, "the user of the Redis URL lacks a permission, which ACL LOG names"),
}
