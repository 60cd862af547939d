"""The command line, before an API that is made up: what it asks, prints and says when something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import httpx
import orjson
import pytest

from gateway import __version__, tokens
from gateway.auth import key_set, token_verifier
from gateway.auth.key_set import KeySet
from gateway.cli.api_client import DEFAULT_URL, PAGE_CLIENTS
from gateway.cli.main import cli
from gateway.cli.tables import age
from tests.kit.process import free_port

SECRET = "a secret that only the tests know, and long enough"
RING = KeySet([key_set.from_secret(SECRET, "")])
WALLET = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
LONG_NODE = "3f2a9b8c7d6e.a1b2c3d4"  # a container's
SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")

Answer = Callable[[httpx.Request], httpx.Response]


class Shell:
    """Runs commands before an API that is `answer`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.answer: Answer = lambda _: httpx.Response(404, json=error("not_found", "There is nothing"))
        self.env: dict[str, str] = {}

    def run(self, *words: str, stdin: bytes | str | None = None) -> click.testing.Result:
        """The outcome of ``gateway`` with these words; it never is a traceback."""
        # Bytes, because a script's standard input is.
        done = click.testing.CliRunner().invoke(
            cli, words, input=stdin, env=self.env, obj=httpx.MockTransport(self._handle), prog_name="gateway"
        )
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done

    def answers(self, document: Any, status: int = 200) -> None:
        """Let the API answer everything with this."""
        self.answer = lambda _: httpx.Response(status, json=document)

    def last(self) -> httpx.Request:
        """What the API was asked last."""
        return self.asked[-1]

    def said(self) -> Any:
        """The body that it was sent last."""
        return orjson.loads(self.last().content)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answer(request)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """An environment without the settings of a cluster, even if the outer shell has them."""
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    return Shell()


def error(code: str, message: str) -> dict[str, Any]:
    """A refusal as the API gives it."""
    return {"error": {"code": code, "message": message}}


def client(number: int, **more: Any) -> dict[str, Any]:
    """A client's row."""
    return {
        "id": f"n1.0.{number}", "node": "n1.0", "connectedAt": "2026-01-31T12:00:00.000Z", "ip": "203.0.113.7",
        "userAgent": "", "user": None, "role": None, "topics": [], **more,
    }  # fmt: skip


def node(name: str, **more: Any) -> dict[str, Any]:
    """A node's row."""
    return {
        "id": name, "name": name, "address": "127.0.0.1:9001", "path": "/ws", "version": __version__,
        "started": "2026-01-31T12:00:00.000Z", "clients": 3, "topics": 2, "ready": True, "draining": False, **more,
    }  # fmt: skip


# ---- the frame


def test_it_says_its_version_however_it_is_called() -> None:
    for program in ([sys.executable, "-m", "gateway"], [str(Path(sys.executable).with_name("gateway"))]):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == f"gateway {__version__}\n"


def test_every_command_and_option_says_what_it_is_for(shell: Shell) -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        assert f"Usage: gateway {name} " in shell.run(name, "--help").stdout
        listed = next(line for line in shell.run("--help").stdout.splitlines() if line.split()[:1] == [name])
        assert not listed.endswith("..."), "the summary is cut short"


def test_other_commands_do_not_load_what_only_a_node_needs() -> None:
    program = "import sys, gateway.cli; print([m for m in ('redis', 'starlette', 'uvicorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_bad_setting_stops_a_node_with_one_sentence(shell: Shell) -> None:
    shell.env["GATEWAY_PRT"] = "1"
    done = shell.run("serve")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr == "GATEWAY_PRT is not a setting of the gateway; did you mean GATEWAY_PORT?\n"


# ---- where the cluster is, and the key to it


def test_the_cluster_is_the_local_stack_unless_said_otherwise(shell: Shell) -> None:
    shell.answers({"nodes": []})
    shell.run("nodes")
    assert str(shell.last().url) == f"{DEFAULT_URL}/api/nodes"
    shell.env["GATEWAY_URL"] = "http://inner.example:1234/"
    shell.run("nodes")
    assert str(shell.last().url) == "http://inner.example:1234/api/nodes"
    shell.run("nodes", "--url", "https://other.example/below")
    assert str(shell.last().url) == "https://other.example/below/api/nodes"


def test_the_key_is_the_environments_unless_given(shell: Shell) -> None:
    shell.answers({"nodes": []})
    shell.run("nodes")
    assert "authorization" not in shell.last().headers
    shell.env["GATEWAY_API_KEY"] = " schlüssel "
    shell.run("nodes")
    assert dict(shell.last().headers.raw)[b"Authorization"] == "Bearer schlüssel".encode()
    shell.run("nodes", "--api-key", "other")
    assert shell.last().headers["authorization"] == "Bearer other"


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://x:99999", "http://[::1", "http://a\nb"])
def test_a_url_that_is_none_is_a_usage_error(shell: Shell, url: str) -> None:
    done = shell.run("nodes", "--url", url)
    assert done.exit_code == 2
    assert "--url" in done.stderr


def test_a_key_with_a_line_break_is_a_usage_error_that_does_not_show_it(shell: Shell) -> None:
    done = shell.run("nodes", "--api-key", "se\ncret")
    assert done.exit_code == 2
    assert "cret" not in done.stderr


# ---- when something is wrong


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json=error("unauthorized", "Send")), ["rejects this key", "GATEWAY_API_KEY"]),
        (httpx.Response(403, json=error("api_off", "off")), ["is off", "GATEWAY_API_KEY"]),
        (httpx.Response(404, json=error("not_found", "No client 'x' is connected")), ["No client 'x' is connected"]),
        (httpx.Response(413, text="<html>"), ["larger than the load balancer allows"]),
        (httpx.Response(503, json=error("unavailable", "Redis is away")), ["Redis is away", "/readyz"]),
        (httpx.Response(500, json=error("internal", "The node failed")), ["The node failed"]),
        (httpx.Response(200, text="hello"), ["answers 200, but it is not a gateway", "GATEWAY_URL"]),
        (httpx.Response(200, json={"other": 1}), ["it is not a gateway"]),
        (httpx.Response(200, json=[]), ["it is not a gateway"]),
        (httpx.Response(404, text="not found"), ["answers 404, but it is not a gateway"]),
        (httpx.Response(502, json={"error": "bad gateway"}), ["answers 502, but it is not a gateway"]),
        (httpx.Response(307, headers={"location": "/"}), ["answers 307, but it is not a gateway"]),
        (httpx.ConnectError("[Errno 111] Connection refused"), ["Cannot reach", "(Connection refused)", "GATEWAY_URL"]),
        (httpx.ConnectTimeout("timed out"), ["Cannot reach", "timed out"]),
        (httpx.ReadTimeout("timed out"), ["did not answer (timed out)"]),
        (httpx.RemoteProtocolError(""), ["did not answer (RemoteProtocolError)"]),
    ],
    ids=lambda value: repr(value)[:50],
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["", "--json"])
def test_what_fails_is_one_sentence_on_standard_error(
    shell: Shell, answer: httpx.Response | Exception, words: list[str], more: list[str]
) -> None:
    def give(_request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    shell.answer = give
    shell.env["GATEWAY_API_KEY"] = "key"
    done = shell.run("clients", "x", *more)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_without_a_key_it_says_that_there_must_be_one(shell: Shell) -> None:
    shell.answers(error("unauthorized", "Send"), 401)
    assert "needs a key: set GATEWAY_API_KEY" in shell.run("nodes").stderr


def test_a_publish_without_an_answer_is_said_to_be_open(shell: Shell) -> None:
    def break_off(_request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("")

    shell.answer = break_off
    assert "it may have been done or not" in shell.run("publish", "t", "1").stderr
    assert "it may have been done or not" not in shell.run("nodes").stderr


def test_an_argument_that_is_not_utf8_is_a_usage_error(shell: Shell) -> None:
    for words in (["publish", "\udcff", "1"], ["publish", "t", "\udcff", "--text"], ["clients", "--user", "\udcff"]):
        done = shell.run(*words)
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, "Error: An argument is not UTF-8.")


# ---- publish


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (['{"a": 1}'], None, {"data": {"a": 1}}),
        (["null"], None, {"data": None}),
        (["--", "-5"], None, {"data": -5}),
        (["-"], b'{"a": "\xc3\x9f"}\n', {"data": {"a": "ß"}}),
        (["--text", "not {json"], None, {"data": "not {json"}),
        (["--text", ""], None, {"data": ""}),
        (["--text", "-"], "line\nline\n", {"data": "line\nline"}),
        (["1", "--action", "a", "--subtype", "s"], None, {"data": 1, "action": "a", "subtype": "s"}),
        (["1", "--priority", "high"], None, {"data": 1, "priority": "high"}),
        (["1", "--priority", "5"], None, {"data": 1, "priority": 5}),
        (["1", "--priority", "0.5"], None, {"data": 1, "priority": 0.5}),
        (["1", "--priority", "nan"], None, {"data": 1, "priority": "nan"}),
        (["1", "--priority", "true"], None, {"data": 1, "priority": "true"}),
        (["1", "--user", "ann"], None, {"data": 1, "to": {"user": "ann"}}),
        (["1", "--role", "admin"], None, {"data": 1, "to": {"role": "admin"}}),
        (["1", "--client", "n1.0.1"], None, {"data": 1, "to": {"client": "n1.0.1"}}),
        (["1", "--except", "n1.0.1"], None, {"data": 1, "except": "n1.0.1"}),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_publish_sends_what_was_said(
    shell: Shell, words: list[str], stdin: bytes | None, message: dict[str, Any]
) -> None:
    shell.answers({"results": [{"topic": "t"}]})
    done = shell.run("publish", "t", *words, stdin=stdin)
    assert (done.exit_code, done.stdout) == (0, "Published on t.\n")
    assert (shell.last().method, shell.last().url.path) == ("POST", "/api/publish")
    assert shell.said() == {"topic": "t", **message}


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["t"], None), (["t", "{"], None), (["t", "plain"], None), (["t", "-"], b"\xff"),
        (["t", "--text", "-"], b"\xff"),
        (["t", "[" * 300 + "]" * 300], None), (["t", "1", "--user", "a", "--role", "b"], None),
        (["t", "1", "--client", "a", "--except", "b"], None), (["t", "1", "2"], None), (["t", "1", "--colour"], None),
    ],
)  # fmt: skip
def test_publish_asks_nothing_of_the_api_when_it_is_used_wrongly(
    shell: Shell, words: list[str], stdin: bytes | None
) -> None:
    done = shell.run("publish", *words, stdin=stdin)
    assert (done.exit_code, done.stdout, shell.asked) == (2, "", [])


# ---- seeing and directing


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        (["nodes"], "GET", "nodes"),
        (["topics"], "GET", "topics?limit=1000"),
        (["topics", "--contains", "a&b"], "GET", "topics?contains=a%26b&limit=1000"),
        (["topics", "a/b:c"], "GET", "topics/a%2Fb%3Ac"),
        (["topics", ".."], "GET", "topics/%2E%2E"),
        (["clients", "n1.0.1"], "GET", "clients/n1.0.1"),
        (["clients", "n1.0.1/topics/x"], "GET", "clients/n1.0.1%2Ftopics%2Fx"),
        (["disconnect", "--client", "n1.0.1"], "DELETE", "clients/n1.0.1"),
        (["disconnect", "--user", "a/b ß?#%"], "DELETE", "users/a%2Fb%20%C3%9F%3F%23%25/clients"),
        (["disconnect", "--user", "."], "DELETE", "users/%2E/clients"),
        (["unsubscribe", "n1.0.1", "a/b"], "DELETE", "clients/n1.0.1/topics/a%2Fb"),
        (["drain", "n1"], "POST", "nodes/n1/drain"),
        (["drain", "../n1"], "POST", "nodes/..%2Fn1/drain"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_names_of_any_form_reach_the_api_whole(shell: Shell, words: list[str], method: str, path: str) -> None:
    shell.run(*words)
    assert (shell.last().method, shell.last().url.raw_path.decode()) == (method, f"/api/{path}")


@pytest.mark.parametrize(
    "words",
    [
        ["disconnect"], ["disconnect", "--client", "a", "--user", "b"], ["unsubscribe", "a"],
        ["topics", "a", "--contains", "b"], ["topics", "a", "--after", "b"], ["topics", "--limit", "0"],
        ["clients", "a", "--user", "b"], ["clients", "a", "--cursor", "b"], ["clients", "--limit", "0"],
        ["nodes", "n1"], ["token", "issue"], ["token", "ann"], ["token", "issue", ""], ["token", "issue", "a" * 201],
        ["token", "issue", "ann", "--role", "king"], ["token", "issue", "ann", "--seconds", "0"], ["nonsense"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_used_wrongly_ends_with_2_and_asks_nothing(shell: Shell, words: list[str]) -> None:
    done = shell.run(*words)
    assert (done.exit_code, done.stdout, shell.asked) == (2, "", [])
    assert done.stderr.splitlines()[-1].startswith("Error: ")


class Book:
    """An API with so many clients, that gives them in pages."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.limits: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        query = request.url.params
        start, limit = int(query.get("cursor", "n1.0.-1").rpartition(".")[2]) + 1, int(query["limit"])
        self.limits.append(limit)
        found = [client(at) for at in range(start, min(start + limit, self.size))]
        more = start + limit < self.size
        return httpx.Response(200, json={"clients": found, "next": found[-1]["id"] if more else None})


@pytest.mark.parametrize(
    ("size", "limit", "asked", "following"),
    [
        (0, 1000, [1000], None),
        (1000, 1000, [1000], None),
        (2500, 2500, [1000, 1000, 500], None),
        (2500, 9999, [1000, 1000, 1000], None),
        (2500, 1500, [1000, 500], "n1.0.1499"),
        (3, 2, [2], "n1.0.1"),
    ],
)
def test_clients_follow_the_pages(shell: Shell, size: int, limit: int, asked: list[int], following: str | None) -> None:
    assert PAGE_CLIENTS == 1000
    shell.answer = book = Book(size)
    answer = orjson.loads(shell.run("clients", "--limit", str(limit), "--json").stdout)
    assert [row["id"] for row in answer["clients"]] == [f"n1.0.{at}" for at in range(min(size, limit))]
    assert answer["next"] == following
    assert book.limits == asked


def test_clients_go_on_behind_a_cursor_and_keep_the_filters(shell: Shell) -> None:
    shell.answer = Book(1500)
    shell.run("clients", "--user", "a/b", "--topic", "c", "--node", "n1", "--limit", "1200", "--cursor", "n1.0.9")
    assert [dict(request.url.params) for request in shell.asked] == [
        {"user": "a/b", "topic": "c", "node": "n1", "limit": "1000", "cursor": "n1.0.9"},
        {"user": "a/b", "topic": "c", "node": "n1", "limit": "200", "cursor": "n1.0.1009"},
    ]


def test_a_list_that_is_not_all_says_so_on_standard_error(shell: Shell) -> None:
    shell.answer = Book(3)
    done = shell.run("clients", "--limit", "2")
    assert "Only the first 2 are listed" in done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert shell.run("clients", "--limit", "3").stderr == ""


def topic_pages(request: httpx.Request) -> httpx.Response:
    """An API with 2,500 topics, which gives them in pages."""
    query = request.url.params
    start, limit = int(query.get("after", "t-1").removeprefix("t")) + 1, int(query["limit"])
    found = [{"topic": f"t{at}", "subscribers": 1, "nodes": {}} for at in range(start, min(start + limit, 2500))]
    following = found[-1]["topic"] if start + limit < 2500 else None
    return httpx.Response(200, json={"topics": found, "next": following, "nodes": {"n1.0": 2500}})


@pytest.mark.parametrize(
    ("limit", "asked", "following"),
    [(2500, [1000, 1000, 500], None), (9999, [1000, 1000, 1000], None), (1500, [1000, 500], "t1499"), (2, [2], "t1")],
)
def test_topics_follow_the_pages(shell: Shell, limit: int, asked: list[int], following: str | None) -> None:
    shell.answer = topic_pages
    done = shell.run("topics", "--limit", str(limit), "--contains", "t", "--json")
    answer = orjson.loads(done.stdout)
    assert [row["topic"] for row in answer["topics"]] == [f"t{at}" for at in range(min(2500, limit))]
    assert (answer["next"], answer["nodes"]) == (following, {"n1.0": 2500})
    assert [int(request.url.params["limit"]) for request in shell.asked] == asked
    assert all(request.url.params["contains"] == "t" for request in shell.asked)


def test_topics_that_are_not_all_say_so_on_standard_error(shell: Shell) -> None:
    shell.answer = topic_pages
    done = shell.run("topics", "--limit", "2", "--after", "t9")
    assert "Only the first 2 are listed" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["topic", "t10", "t11"]


@pytest.mark.parametrize(
    ("words", "document"),
    [
        (["nodes"], {"nodes": [node("n1")]}),
        (["topics"], {"topics": [], "next": None, "nodes": {"n1.0": 0}}),
        (["topics", "t"], {"topic": "t", "subscribers": 0, "nodes": {}}),
        (["clients", "n1.0.1"], client(1)),
        (["clients"], {"clients": [client(1)], "next": None}),
        (["publish", "t", "1"], {"results": [{"topic": "t"}]}),
        (["disconnect", "--user", "ann"], {"disconnected": []}),
        (["unsubscribe", "n1.0.1", "t"], {"unsubscribed": ["t"]}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_json_is_the_apis_own_document_and_nothing_else(shell: Shell, words: list[str], document: Any) -> None:
    shell.answers(document)
    done = shell.run(*words, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert orjson.loads(done.stdout) == document


# ---- tables


def terminal(shell: Shell, width: int) -> None:
    """Let standard output be a terminal of so many columns."""
    shell.env |= {"FORCE_COLOR": "1", "COLUMNS": str(width), "TERM": "xterm"}


def test_a_table_for_a_pipe_is_plain_with_one_line_for_each_row(shell: Shell) -> None:
    rows = [client(at, user="u" * 200, topics=["t"] * at) for at in range(3)]
    shell.answers({"clients": rows, "next": None})
    head, *lines = shell.run("clients").stdout.splitlines()
    assert head.split() == ["client", "user", "topics", "for", "ip", "role"]
    assert [line.split()[:3] for line in lines] == [[f"n1.0.{at}", "u" * 200, str(at)] for at in range(3)]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [80, 60, 50])
def test_a_narrow_terminal_folds_and_drops_but_never_cuts_an_id(shell: Shell, width: int) -> None:
    ids = [f"{LONG_NODE}.{at}" for at in (7, 12345)]
    shell.answers({"clients": [client(0, id=name, user=WALLET, topics=["t"] * 1234) for name in ids], "next": None})
    terminal(shell, width)
    lines = SEQUENCE.sub("", shell.run("clients").stdout).splitlines()
    assert max(map(len, lines)) <= width
    first_column = [line.split()[0] for line in lines]
    assert all(name in first_column for name in ids)
    assert all(word in " ".join(lines) for word in ("client", "user", "topics", "1234"))
    assert "…" not in "".join(lines)
    folded = "".join(part for line in lines[1:] for part in line.split() if part not in (*ids, "1234"))
    assert folded.startswith(WALLET), "nothing of the user's name is lost"


def test_nodes_fit_80_columns(shell: Shell) -> None:
    rows = [
        node(LONG_NODE, clients=12345),
        node("n2.a1b2c3d4", draining=True),
        node("n3.a1b2c3d4", ready=False, address="0.0.0.0:9000"),
    ]
    shell.answers({"nodes": rows})
    terminal(shell, 80)
    shown = shell.run("nodes").stdout
    lines = SEQUENCE.sub("", shown).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:]] == [row["id"] for row in rows]
    assert [re.search(r"not ready|ready|draining", line)[0] for line in lines[1:]] == ["ready", "draining", "not ready"]  # type: ignore[index]
    assert "\x1b[32mready" in shown


def test_what_others_chose_cannot_direct_the_terminal(shell: Shell) -> None:
    evil = "\x1b[2J\x9b31m[bold]\u202eann\r\n"
    shell.answers({"clients": [client(1, user=evil)], "next": None})
    line = shell.run("clients").stdout.splitlines()[1]
    assert line.isprintable()
    assert "[bold]" in line
    shell.answers(client(1, userAgent=evil, topics=["a", "b"]))
    shown = shell.run("clients", "n1.0.1").stdout
    assert all(line.isprintable() for line in shown.splitlines())
    assert re.search(r"^userAgent  .*\[bold\]", shown, re.MULTILINE)
    assert re.search(r"^topics +a, b", shown, re.MULTILINE)
    assert re.search(r"^user +-", shown, re.MULTILINE)
    shell.answers(error("not_found", evil), 404)
    assert shell.run("nodes").stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("words", "document", "said"),
    [
        (["nodes"], {"nodes": []}, "There are no nodes.\n"),
        (["clients"], {"clients": [], "next": None}, "There are no clients.\n"),
        (["topics"], {"topics": []}, "No client is subscribed to any topic.\n"),
        (["topics", "--contains", "x"], {"topics": []}, "No topic matches.\n"),
        (["topics", "t"], {"topic": "t", "subscribers": 0, "nodes": {}}, "No client is subscribed to t.\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_table_is_a_sentence_on_standard_error(
    shell: Shell, words: list[str], document: Any, said: str
) -> None:
    shell.answers(document)
    done = shell.run(*words)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", said)


def test_topics_are_shown_with_their_counts(shell: Shell) -> None:
    one = {"topic": "a/b", "subscribers": 5, "nodes": {"n1.0": 2, "n2.0": 3}}
    shell.answers({"topics": [one]})
    assert [line.split() for line in shell.run("topics").stdout.splitlines()] == [
        ["topic", "clients", "nodes"], ["a/b", "5", "2"],
    ]  # fmt: skip
    shell.answers(one)
    assert [line.split() for line in shell.run("topics", "a/b").stdout.splitlines()] == [
        ["node", "clients"], ["n1.0", "2"], ["n2.0", "3"],
    ]  # fmt: skip


def test_disconnect_prints_the_closed_clients(shell: Shell) -> None:
    shell.answers({"disconnected": ["n1.0.1", "n2.0.7"]})
    assert shell.run("disconnect", "--user", "ann").stdout == "Disconnected n1.0.1.\nDisconnected n2.0.7.\n"
    shell.answers({"disconnected": []})
    assert shell.run("disconnect", "--user", "ann").stdout == "ann has no clients.\n"
    shell.answers({"unsubscribed": ["t"]})
    assert shell.run("unsubscribe", "n1.0.1", "t").stdout == "Unsubscribed n1.0.1 from t.\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86_399, "23 h"),
        (172_800, "2 d"),
    ],
)  # fmt: skip
def test_an_age_is_short(seconds: float, shown: str) -> None:
    assert age("1970-01-02T00:00:00.000Z", 86_400 + seconds) == shown


# ---- tokens


def test_a_token_proves_its_user_to_a_node(shell: Shell) -> None:
    shell.env["GATEWAY_JWT_SECRET"] = SECRET
    made = shell.run("token", "issue", "ann/b", "--role", "admin", "--seconds", "60")
    assert (made.exit_code, made.stderr, made.stdout.count("\n")) == (0, "", 1)
    identity = token_verifier.TokenVerifier(RING, leeway_seconds=0).verify(made.stdout.strip())
    assert (identity.user, identity.role) == ("ann/b", "admin")
    assert identity.expires == pytest.approx(time.time() + 60, abs=5)
    assert shell.asked == []


def test_a_token_as_json_has_its_expiry(shell: Shell) -> None:
    shell.env["GATEWAY_JWT_SECRET"] = SECRET
    made = orjson.loads(shell.run("token", "issue", "ann", "--json").stdout)
    assert made.keys() == {"token", "user", "role", "expires"}
    identity = token_verifier.TokenVerifier(RING, leeway_seconds=0).verify(made["token"])
    assert age(made["expires"], identity.expires or 0) == "0 s"


def test_a_token_needs_the_secret(shell: Shell) -> None:
    done = shell.run("token", "issue", "ann")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "A token must be signed: set GATEWAY_JWT_SECRET to the secret of the nodes\n"


def test_a_weak_secret_causes_a_warning_of_one_line(shell: Shell) -> None:
    shell.env["GATEWAY_JWT_SECRET"] = "short"
    done = shell.run("token", "issue", "ann")
    assert done.exit_code == 0
    assert done.stderr == "GATEWAY_JWT_SECRET is weak: use at least 32 bytes\n"
    assert shell.run("token", "explain", "-", stdin=done.stdout).stderr == ""


def test_a_valid_token_is_explained(shell: Shell) -> None:
    shell.env["GATEWAY_JWT_SECRET"] = SECRET
    token = tokens.issue(SECRET, "ann", "admin", 60, time.time())
    done = shell.run("token", "explain", token)
    assert done.exit_code == 0
    assert re.search(r"^wallet_address +ann *$", done.stdout, re.MULTILINE)
    assert re.search(r"^exp +\d+  \(20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\)", done.stdout, re.MULTILINE)
    assert re.search(r"^verdict +Valid: user ann, role admin *$", done.stdout, re.MULTILINE)
    document = orjson.loads(shell.run("token", "explain", "-", "--json", stdin=token + "\n").stdout)
    assert (document["valid"], document["reason"]) == (True, None)
    assert document["header"]["alg"] == "HS256"
    assert document["claims"]["role"] == "admin"


@pytest.mark.parametrize(
    ("secret", "signed_with", "seconds", "reason", "message"),
    [
        (SECRET, SECRET, -60, "token_expired", "The token has expired"),
        (SECRET, SECRET[::-1], 60, "token_invalid", "The token is not valid"),
        ("", SECRET, 60, "token_invalid", "Not verified: GATEWAY_JWT_SECRET is not set"),
    ],
)
def test_a_token_that_proves_nothing_is_explained_and_fails(
    shell: Shell, secret: str, signed_with: str, seconds: int, reason: str, message: str
) -> None:
    shell.env["GATEWAY_JWT_SECRET"] = secret
    token = tokens.issue(signed_with, "ann", "user", seconds, time.time())
    done = shell.run("token", "explain", token)
    assert (done.exit_code, done.stderr) == (1, "")
    assert re.search(rf"^verdict +{message} *$", done.stdout, re.MULTILINE)
    document = orjson.loads(shell.run("token", "explain", token, "--json").stdout)
    assert (document["valid"], document["reason"], document["message"]) == (False, reason, message)


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "é", "..", "a" * 10_000])
def test_an_invalid_token_is_reported_in_one_sentence(shell: Shell, text: str) -> None:
    done = shell.run("token", "explain", "-", stdin=text)
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"This is not a token: .*\n", done.stderr)


# ---- is everything well?


class Cluster:
    """An API that knows these nodes."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.nodes = list(nodes)
        self.refuses: tuple[int, str] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/openapi.json":
            return httpx.Response(200, json={"info": {"version": "9.9"}})
        if self.refuses is not None:
            return httpx.Response(self.refuses[0], json=error("refused", self.refuses[1]))
        return httpx.Response(200, json={"nodes": self.nodes})


def checked(shell: Shell) -> dict[str, bool | None]:
    """The checks by name; the table and the exit code tell the same."""
    document = orjson.loads(shell.run("check", "--json").stdout)
    done = shell.run("check")
    assert done.exit_code == (0 if document["ok"] else 1)
    words = {True: "ok", False: "failed", None: "skipped"}
    for one in document["checks"]:
        assert re.search(rf"^{re.escape(one['check'])} +{words[one['ok']]}\b", done.stdout, re.MULTILINE), done.stdout
        assert one["ok"] is not False or one["found"], "each failed check names what is wrong"
    return {one["check"]: one["ok"] for one in document["checks"]}


def test_all_is_well(shell: Shell) -> None:
    shell.answer = Cluster(node("n1.0"), node("n2.0"))
    assert checked(shell) == {
        "settings": True, "API": True, "key": True, "Redis": True, "node n1.0": True, "node n2.0": True,
    }  # fmt: skip


def test_a_node_that_is_not_ready_is_named_with_where_to_look(shell: Shell) -> None:
    shell.answer = Cluster(
        node("n1.0"), node("n2.0", ready=False, address="10.0.0.2:9000"), node("n3.0", draining=True)
    )
    found = checked(shell)
    assert (found["node n1.0"], found["node n2.0"], found["node n3.0"]) == (True, False, False)
    assert "-> see http://10.0.0.2:9000/readyz" in shell.run("check").stdout


def test_nodes_with_other_topic_rules_are_named(shell: Shell) -> None:
    shell.answer = Cluster(node("n1.0", rules="aa"), node("n2.0", rules="aa"), node("n3.0", rules=""))
    assert checked(shell)["topic rules"] is True
    shell.answer = Cluster(node("n1.0", rules="aa"), node("n2.0", rules="bb"), node("n3.0", rules="aa"))
    assert checked(shell)["topic rules"] is False
    assert "differ: n1.0, n3.0: aa; n2.0: bb" in shell.run("check").stdout


def test_no_nodes_are_not_well(shell: Shell) -> None:
    shell.answer = Cluster()
    assert checked(shell)["nodes"] is False


@pytest.mark.parametrize(
    ("status", "states"),
    [
        (401, {"API": True, "key": False, "Redis": None, "nodes": None}),
        (403, {"API": True, "key": False, "Redis": None, "nodes": None}),
        (503, {"API": True, "key": True, "Redis": False, "nodes": None}),
        (500, {"API": False, "key": None, "Redis": None, "nodes": None}),
    ],
)
def test_a_check_that_cannot_run_is_not_passed(shell: Shell, status: int, states: dict[str, bool | None]) -> None:
    shell.answer = cluster = Cluster()
    cluster.refuses = status, "because"
    assert checked(shell) == {"settings": True, **states}


def test_an_api_that_is_not_there_fails_alone(shell: Shell) -> None:
    shell.answers(error("unavailable", "no node is ready"), 503)
    assert checked(shell) == {"settings": True, "API": False, "key": None, "Redis": None, "nodes": None}
    assert "no node is ready" in shell.run("check").stdout


def test_a_bad_setting_here_fails_its_check_and_not_the_others(shell: Shell) -> None:
    shell.answer = Cluster(node("n1.0"))
    shell.env["GATEWAY_PORT"] = "many"
    assert checked(shell) == {"settings": False, "API": True, "key": True, "Redis": True, "node n1.0": True}


def test_a_redis_that_is_named_here_is_asked_from_here(shell: Shell) -> None:
    shell.answer = Cluster(node("n1.0"))
    shell.env["GATEWAY_REDIS_URL"] = f"redis://ann:secret@127.0.0.1:{free_port()}/0"
    found = checked(shell)
    assert (found["Redis from here"], found["Redis"]) == (False, True)
    assert "secret" not in shell.run("check").stdout


# ---- drain, rebalance


def test_drain_prints_the_name_of_the_node(shell: Shell) -> None:
    shell.answers({"draining": ["n1.9f2c31ab"]})
    assert shell.run("drain", "n1").stdout == "n1.9f2c31ab is draining.\n"


def test_reload_lists_the_nodes_or_says_why_none_has_changed(shell: Shell) -> None:
    shell.answers({"reloaded": ["n1.a", "n2.b"], "rules": "0"})
    assert shell.run("reload").stdout == "n1.a has reloaded.\nn2.b has reloaded.\n"


def test_rebalance_prints_how_many_clients_each_node_moves_and_when(shell: Shell) -> None:
    shell.answers(
        {"moves": [{"node": "n1.a", "clients": 10}, {"node": "n2.b", "clients": 7}], "seconds": 5, "after": 0}
    )
    sent = ["n1.a moves 10 clients.", "n2.b moves 7 clients."]
    assert shell.run("rebalance", "--seconds", "5").stdout.splitlines() == sent
    assert shell.said() == {"seconds": 5}
    shell.answers({"moves": [{"node": "n1.a", "clients": 10}], "seconds": 60, "after": 12.4})
    assert shell.run("rebalance").stdout.splitlines()[1].startswith("The moves begin in 12 s:")
    assert shell.said() == {"seconds": 60}
    shell.answers({"moves": [], "seconds": 60, "after": 0})
    assert shell.run("rebalance").stdout == "The clients are balanced, so no client moves.\n"


@pytest.mark.parametrize("seconds", ["-1", "3601", "soon"])
def test_rebalance_over_no_time_that_can_be_is_misuse(shell: Shell, seconds: str) -> None:
    done = shell.run("rebalance", "--seconds", seconds)
    assert (done.exit_code, shell.asked) == (2, [])


def test_an_unconfirmed_publish_is_not_reported_as_undone(shell: Shell) -> None:
    shell.answers(error("unconfirmed", "published, but confirmed by 0 of 1 replicas; …"), 503)
    done = shell.run("publish", "t", "1")
    assert done.exit_code == 1
    assert done.stderr.startswith("published, but confirmed by 0 of 1 replicas")


def test_a_node_that_gives_clients_away_is_shown_so(shell: Shell) -> None:
    node = {
        "id": "n1.a", "clients": 3, "topics": 1, "version": "1", "started": "2026-01-31T12:00:00.000Z",
        "address": "127.0.0.1:9001", "ready": True, "draining": False, "moving": True,
    }  # fmt: skip
    shell.answers({"nodes": [node]})
    assert "ready, moving clients" in shell.run("nodes").stdout
