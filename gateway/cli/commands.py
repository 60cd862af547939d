"""What every command shares: how it is led to the cluster, how it shows what it found, how it fails."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import click

from gateway.cli.remote import DEFAULT_URL, Remote, RemoteError
from gateway.cli.tables import print_json, shown

Steps = Iterator[dict[str, Any]]
Command = Callable[..., Steps]


class Failure(click.ClickException):
    """Ends the command with one sentence on standard error, and exit code 1."""

    def show(self, file: Any = None) -> None:
        """The sentence alone."""
        click.echo(shown(self.message), file=file, err=True)


class Misuse(Failure):
    """The same, where whoever called it did it wrong."""

    exit_code = 2


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def speaking(command: Command) -> Callable[..., None]:
    """Give `command` the options that lead to the cluster, and the cluster as its first argument.

    It yields the document that is its result; what it does behind that shows it to people. A document that says
    ``"ok": false`` makes the command fail.
    """

    @click.option(
        "--url",
        envvar="GATEWAY_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=_url,
        help="The cluster's internal address, or a node's.",
    )
    @click.option(
        "--api-key",
        envvar="GATEWAY_API_KEY",
        default="",
        show_envvar=True,
        callback=_key,
        help="The nodes' API key; better in the environment: `ps` shows what is given here.",
    )
    @as_json_option
    @click.pass_context
    @functools.wraps(command)
    def run(context: click.Context, /, *, url: str, api_key: str, as_json: bool, **options: Any) -> None:
        if any(isinstance(given, str) and not _is_utf8(given) for given in options.values()):
            raise click.UsageError("An argument is not UTF-8.")
        try:
            with Remote(url, api_key, transport=context.obj) as remote:
                steps = command(remote, **options)
                document = next(steps)
        except RemoteError as error:
            raise Failure(str(error)) from None
        if as_json:
            print_json(document)
        else:
            next(steps, None)
        context.exit(0 if document.get("ok", True) else 1)

    return run


def _url(_context: click.Context, _option: click.Parameter, url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable():
            return url
    given = "a URL with an @" if "@" in url else repr(url)  # it may hold a password
    raise click.BadParameter(f"{given} is none such as {DEFAULT_URL}")


def _key(_context: click.Context, _option: click.Parameter, key: str) -> str:
    key = key.strip()
    if not key.isprintable():
        raise click.BadParameter("the key holds a line break or another control character")
    return key


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
