"""What no rule covers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

TEST_OF = {}

SPLIT_DOCS = {
    "gateway.protocols.native.decoder": "Decodes the JSON text of a client into commands.  (pure)",
    "gateway.core.effects": "What a session has its caller do for a command.  (pure)",
    "gateway.core.json_text": "Reads and writes JSON text without changing a value.  (pure)",
    "gateway.core.names": "Names that clients and back ends give to things.  (pure)",
    "gateway.core.timestamps": "Times as ISO 8601 text.  (pure)",
    "gateway.broker.fence": "Fencing tokens: what a singleton shows with each write, so that an older leader cannot write.",
}


FLOORS = """A cluster of WebSocket gateways. The packages from top to bottom; imports go only downward:

__main__
cli/          commands for people
server        uvicorn around one node
app           composition root: settings in, a Starlette application out
http/         everything served beside the sockets: API, pages, health, middleware
node/         one process: node, heartbeat, readiness, reaper, drain, control channel, statistics
connections/  this node's clients: manager, admission, limits, async commands
services/     service manager and singletons
cache/        the shared cache
delivery/     publish and deliver on this node: publisher, dispatcher, subscriptions, recovery, presence, sender
auth/         tokens, key sets, API keys, permission checks, revocations
cluster/      shared state under node leases: registry, presence store, connection limits, quotas
broker/       Redis: topology, client, pipeline, pub/sub, envelope, history, snapshots, keys, Lua scripts
transports/   what carries frames: WebSocket, HTTP streams, HTTP/1
protocols/    what is specific to one client protocol
backend       HTTP client of the back end
client/       the Python client
metrics, settings, logging
core/         pure rules, without I/O and without a clock

pyproject.toml has the contracts; `make lint` checks them.
"""

def before() -> None:
    """Changes to the old tree."""


def moves() -> dict[str, str]:
    """Files that are no Python."""
    found = {}
    listed = subprocess.run(["git", "ls-files", "kubernetes", "monitoring"], capture_output=True, text=True, check=True)
    for path in listed.stdout.split():
        found[path] = f"deploy/{path}"
    return found


def replace(path: str, *pairs: tuple[str, str]) -> None:
    """Replace texts in a file; say so if one is not there."""
    file = Path(path)
    if not file.exists():
        print(f"patch: no {path}")
        return
    text = file.read_text()
    for old, new in pairs:
        if old not in text:
            print(f"patch: {path} has no {old!r}")
        text = text.replace(old, new)
    file.write_text(text)


def after(moved: dict[str, str]) -> None:
    """Changes to the new tree."""
    contracts()
    replace("gateway/broker/client.py", ('resources.files("gateway.cluster")', 'resources.files("gateway.broker")'))
    replace("tests/integration/test_redis_cluster.py", ('"gateway" / "cluster" / "lua"', '"gateway" / "broker" / "lua"'))
    replace(
        "deploy/kubernetes/kustomization.yaml",
        ("  - ../haproxy\n", "  - ../../haproxy\n"), ("--kustomize kubernetes", "--kustomize deploy/kubernetes"),
    )  # fmt: skip
    replace("deploy/kubernetes/monitoring/kustomization.yaml", ("--kustomize kubernetes", "--kustomize deploy/kubernetes"))
    replace("haproxy/kustomization.yaml", ("for kubernetes/", "for deploy/kubernetes/"))
    replace("compose.yaml", ("./monitoring/", "./deploy/monitoring/"), (" in monitoring/", " in deploy/monitoring/"))
    replace("docs/kubernetes.md", ("`kubernetes/`", "`deploy/kubernetes/`"), ("--kustomize kubernetes", "--kustomize deploy/kubernetes"))
    replace("docs/operations.md", ("`monitoring/`", "`deploy/monitoring/`"))
    replace("tests/unit/test_kubernetes.py", ('ROOT / "kubernetes"', 'ROOT / "deploy" / "kubernetes"'))
    replace(
        "mutants/trial.py",
        ("client/|cli/|web/|auth/", "client/|cli/|http/|auth/"),
        (
            'mirror = f"tests/unit/test_{Path(mutant.path).stem}.py"',
            'mirror = str(Path("tests/unit", *Path(mutant.path).parts[1:-1], f"test_{Path(mutant.path).stem}.py"))',
        ),
    )  # fmt: skip
    file = Path("tests/integration/test_listings.py")
    file.write_text(re.sub(r'(turns_of\(\S+\.rows, )"take"', r'\1"decode"', file.read_text()))
    file = Path("gateway/client/__init__.py")
    stems = {Path(a).name: Path(b).name for a, b in moved.items() if a.startswith("gateway/client/")}
    file.write_text(
        re.sub(r"^(    )(\w+\.py)( +)", lambda m: f"{m[1]}{stems.get(m[2], m[2]):<{len(m[2] + m[3])}}", file.read_text(), flags=re.M)
    )
    file = Path("gateway/__init__.py")
    text = file.read_text()
    file.write_text(f'"""{FLOORS}"""\n' + text[text.index('"""', 3) + 3 :].lstrip("\n").join(["\n", ""]))


def contracts() -> None:
    """The floors, for import-linter."""
    file = Path("pyproject.toml")
    text = file.read_text()
    start = text.index("[[tool.importlinter.contracts]]")
    end = text.find("\n[", text.rindex("[[tool.importlinter.contracts]]") + 5)
    tail = text[end:] if end > 0 else ""
    file.write_text(text[:start] + Path(__file__).with_name("contracts.toml").read_text() + tail)
