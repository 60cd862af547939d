"""URLs in settings: parsed once, completely, before anything connects.  (pure)

Redis, by scheme (`s` behind ``redis``: TLS to the servers):

    redis[s]://[user:password@]host[:port][/db][?options]
    unix://[user:password@]/path[?db=0]
    redis[s]+sentinel://[user:password@]host[:port],host[:port]/service[/db][?options]
    redis[s]+cluster://[user:password@]host[:port],host[:port][?options]

The options are those of TLS, and for one server ``db``, ``username`` and ``password``. An error names the part of the
URL, the rule and the remedy. It never quotes the URL: where a password is not escaped, any part may hold a piece of it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_URL_CHARACTERS: Final = 4096
MAX_HOSTS: Final = 100  # in one URL
MAX_DATABASE: Final = 65_535

Host = tuple[str, int]

_SCHEME: Final = re.compile(r"(redis|rediss|unix|rediss?\+sentinel|rediss?\+cluster)://")
_SCHEMES: Final = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
_HOST: Final = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9_.\-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_OUTSIDE: Final = re.compile(r"[^\x21-\x7e]")  # RFC 3986: all else is percent-encoded

# What redis-py takes, and the values that it understands; None: any text.
_TLS_OPTIONS: Final[dict[str, frozenset[str] | None]] = {
    "ssl_cert_reqs": frozenset({"none", "optional", "required"}),
    "ssl_check_hostname": frozenset({"true", "false", "yes", "no", "1", "0"}),
    "ssl_ca_certs": None,
    "ssl_ca_path": None,
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "ssl_password": None,
}
_ONE_SERVER_OPTIONS: Final = ("db", "username", "password")
_SETTINGS_INSTEAD: Final = {"socket_timeout", "socket_connect_timeout", "timeout"}


class UrlError(ValueError):
    """A URL is invalid. The text continues a sentence that begins with "… must be"."""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The address of Redis and the login. `hosts`: the server, the Sentinels, or the servers of the cluster."""

    kind: str  # "single", "unix", "sentinel" or "cluster"
    hosts: tuple[Host, ...] = ()
    path: str = ""  # of a Unix socket
    service: str = ""  # of Sentinels
    database: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_options: dict[str, str | bool] = field(default_factory=dict, repr=False)


def parse_redis(text: str) -> RedisUrl:
    """Parse the Redis URL `text`.

    Raises:
        UrlError: `text` is not a valid Redis URL. The error never quotes it.
    """
    try:
        return _parse_redis(text)
    except _Fault as fault:
        rest = text.partition("://")[2]
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in rest[len(authority) :]:
            raise UrlError(
                "a Redis URL, but its user or password has a /, ? or # that is not escaped: write %2F, %3F, %23"
            ) from None
        raise UrlError(f"a Redis URL, but {fault}") from None


class _Fault(Exception):
    """The reason why a URL is invalid."""


def _parse_redis(text: str) -> RedisUrl:
    if len(text) > MAX_URL_CHARACTERS:
        raise _Fault(f"it is longer than {MAX_URL_CHARACTERS} characters")
    match = _SCHEME.match(text)
    if match is None:
        raise _Fault(f"it does not begin with {_SCHEMES}")
    if _OUTSIDE.search(text):
        raise _Fault("it has a space, a control character or one beyond ASCII: percent-encode it (a space is %20)")
    if "#" in text:
        raise _Fault("it has a #: in a user or password write %23")
    scheme, rest = match[1], text[match.end() :]
    first, _, kind = scheme.partition("+")
    kind = kind or ("unix" if first == "unix" else "single")
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    login, at, hosts = authority.rpartition("@")
    user, password = _login(login) if at else (None, None)
    tls = first == "rediss"
    options = _options(query, kind, tls)
    if "username" in options or "password" in options:
        if at:
            raise _Fault("it gives user or password twice, before the @ and as an option: remove one of them")
        user, password = options.pop("username", None), options.pop("password", None)
    database, service = _database(options.pop("db", None), "the option db"), ""
    match kind:
        case "unix":
            if hosts or not path:
                raise _Fault("the path of the Unix socket is not absolute: write unix:///run/redis.sock")
        case "sentinel":
            service, _, number = path.partition("/")
            if not service:
                raise _Fault("it names no service after the Sentinels: write redis+sentinel://host:26379/service")
            database, service = _database(number, "the part behind the service"), _decoded(service, "the service")
        case "single":
            if path and database is not None:
                raise _Fault("it gives the database twice, in the path and as db: remove one of them")
            database = database if database is not None else _database(path, "the path")
        case _ if path:
            raise _Fault("a Redis Cluster has no database number: remove all after the hosts")
    tls_options: dict[str, str | bool] = dict(options)
    if "ssl_check_hostname" in options:
        tls_options["ssl_check_hostname"] = options["ssl_check_hostname"] in ("true", "yes", "1")
    unix = kind == "unix"
    return RedisUrl(
        kind, () if unix else _hosts(hosts, kind), _decoded(slash + path, "the path") if unix else "", service,
        database or 0, user, password, tls, tls_options,
    )  # fmt: skip


def _login(text: str) -> tuple[str | None, str | None]:
    if "@" in text:
        raise _Fault("its user or password has an @ that is not escaped: write %40")
    user, colon, password = text.partition(":")
    if not colon:
        raise _Fault("it has a user without a password: write user:password@host, or :password@host without a user")
    return _decoded(user, "the user") or None, _decoded(password, "the password") or None


def _hosts(text: str, kind: str) -> tuple[Host, ...]:
    default = SENTINEL_PORT if kind == "sentinel" else REDIS_PORT
    parts = text.split(",")
    if len(parts) > (1 if kind == "single" else MAX_HOSTS):
        most = "one host: write redis+sentinel:// or redis+cluster:// for several" if kind == "single" else MAX_HOSTS
        raise _Fault(f"it names {len(parts)} hosts, and may name {most}")
    return tuple(_host(part, default) for part in parts)


def _host(text: str, default_port: int) -> Host:
    if text.count(":") > 1 and not text.startswith("["):
        raise _Fault("a host has more than one colon: write an IPv6 address in brackets, and a login before an @")
    if not text or text.startswith(":"):
        raise _Fault(f"a host is empty: write host:{default_port}")
    match = _HOST.fullmatch(text)
    if match is None:
        begins = _HOST.match(text)
        if begins is not None and text[begins.end(1) :].startswith(":"):
            raise _Fault("a port is not a whole number from 1 to 65535")
        raise _Fault(
            "a host is not a name, an IPv4 address or an IPv6 address in brackets: "
            "write host:6379 or [::1]:6379, and escape what a password holds"
        )
    host, port = match[1], int(match[2]) if match[2] else default_port
    if not 0 < port < 65536:
        raise _Fault("a port is not a whole number from 1 to 65535")
    if host.startswith("["):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise _Fault("a host in brackets is not an IPv6 address: write [::1]:6379")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _database(text: str | None, where: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > MAX_DATABASE:
        raise _Fault(f"{where} is not a database number from 0 to {MAX_DATABASE}")
    return int(text)


def _options(query: str, kind: str, tls: bool) -> dict[str, str]:
    known = [*_TLS_OPTIONS, *(_ONE_SERVER_OPTIONS if kind in ("single", "unix") else ())]
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name in _SETTINGS_INSTEAD:
            raise _Fault(f"{name} is not an option here: set GATEWAY_REDIS_TIMEOUT_SECONDS instead")
        if name not in known:
            raise _Fault(f"it has an unknown option: use one of {', '.join(known)}")
        if name in _TLS_OPTIONS and not tls:
            raise _Fault(f"the option {name} needs TLS: write rediss in place of redis")
        if name in found:
            raise _Fault(f"it gives the option {name} twice: remove one of them")
        values = _TLS_OPTIONS.get(name)
        found[name] = _decoded(value, f"the option {name}")
        if not found[name]:
            raise _Fault(f"the option {name} is empty: remove it, or give it a value")
        if values is not None and found[name] not in values:
            raise _Fault(f"the option {name} has an unknown value: use one of {', '.join(sorted(values))}")
    return found


def _decoded(text: str, what: str) -> str:
    if _ESCAPE.search(text):
        raise _Fault(f"{what} has a % that is not followed by two hexadecimal digits: write %25 for the % itself")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _Fault(f"{what} is not UTF-8 once its %-escapes are decoded") from None
    if "\0" in decoded:
        raise _Fault(f"{what} has a NUL character")
    return decoded


# ---- HTTP


def check_http(text: str, *, what: str, query: bool) -> str:
    """Return `text` if it is an http or https URL without user, password and fragment.

    `what` is an example for the error message. `query`: whether the URL may have a query.

    Raises:
        UrlError: The URL is invalid. The error never quotes it.
    """
    try:
        _check_http(text, query)
    except _Fault as fault:
        raise UrlError(f"a URL such as {what}, but {fault}") from None
    return text


def _check_http(text: str, query: bool) -> None:
    match = re.match(r"https?://", text)
    if match is None:
        raise _Fault("it does not begin with https:// or http://")
    if len(text) > MAX_URL_CHARACTERS:
        raise _Fault(f"it is longer than {MAX_URL_CHARACTERS} characters")
    if _OUTSIDE.search(text):
        raise _Fault("it has a space, a control character or one beyond ASCII: percent-encode it (a space is %20)")
    rest = text[match.end() :]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise _Fault("it has a user or password, which is not allowed here: remove all up to the @")
    if "#" in text:
        raise _Fault("it has a #: remove the fragment")
    if "?" in text and not query:
        raise _Fault("it has a query: remove all from the ? on")
    _host(authority, 443 if match[0] == "https://" else 80)
    if _ESCAPE.search(rest):
        raise _Fault("it has a % that is not followed by two hexadecimal digits: write %25 for the % itself")
