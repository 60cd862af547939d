"""The common parts of all commands: the options for the cluster, JSON output, and errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import click

from gateway.cli.api_client import DEFAULT_URL, ApiClient, ApiClientError
from gateway.cli.tables import print_json, shown

Steps = Iterator[dict[str, Any]]
Command = Callable[..., Steps]


class CommandFailure(click.ClickException):
    """Ends the command with one sentence on standard error and exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the sentence, without click's prefix."""
        click.echo(shown(self.message), file=file, err=True)


class CommandMisuse(CommandFailure):
    """Ends the command with one sentence and exit code 2: the command or the settings are wrong."""

    exit_code = 2


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def api_command(command: Command) -> Callable[..., None]:
    """Add the options for the cluster to `command`, and pass the cluster as its first argument.

    `command` first yields its result as a JSON document. After that it prints the result for people, unless --json is
    given. The command fails if the document has ``"ok": false``.
    """

    @click.option(
        "--url",
        envvar="GATEWAY_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=_url,
        help="The internal address of the cluster, or the address of a node.",
    )
    @click.option(
        "--api-key",
        envvar="GATEWAY_API_KEY",
        default="",
        show_envvar=True,
        callback=_key,
        help="The API key of the nodes. Set it in the environment, because `ps` shows options.",
    )
    @as_json_option
    @click.pass_context
    @functools.wraps(command)
    def run(context: click.Context, /, *, url: str, api_key: str, as_json: bool, **options: Any) -> None:
        if any(isinstance(given, str) and not _is_utf8(given) for given in options.values()):
            raise click.UsageError("An argument is not UTF-8.")
        try:
            with ApiClient(url, api_key, transport=context.obj) as api_client:
                steps = command(api_client, **options)
                document = next(steps)
        except ApiClientError as error:
            raise CommandFailure(str(error)) from None
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
    given = "a URL with an @" if "@" in url else repr(url)  # do not show a password
    raise click.BadParameter(f"{given} is not an http or https URL such as {DEFAULT_URL}")


def _key(_context: click.Context, _option: click.Parameter, key: str) -> str:
    key = key.strip()
    if not key.isprintable():
        raise click.BadParameter("the key has a line break or another control character; remove it")
    return key


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
