"""Folder and ports of a stack. Stacks with different ones can run side by side."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_NODES = 16  # the servers of haproxy.cfg: GW1..GW16, and GW_MAX with Docker's DNS


class StackError(Exception):
    """What went wrong, in one sentence; the last lines of the file `log` have details."""

    def __init__(self, sentence: str, log: Path | None = None) -> None:
        super().__init__(sentence)
        self.log = log


@dataclass(frozen=True)
class Place:
    run: Path  # all state: the API key, logs, sockets, Redis' files
    lb_port: int  # HAProxy's public port
    admin_port: int  # HAProxy's internal port: API, stats, metrics
    node_port: int  # of the first node; the others follow. Local stack only
    redis: str = "single"  # or "cluster": three masters, three replicas. With Compose only

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Place":
        def port(name: str, default: int) -> int:
            text = env.get(name, str(default))
            if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
                raise StackError(f"{name} must be a port number, not {text!r}.")
            return int(text)

        redis = env.get("REDIS") or "single"
        if redis not in ("single", "cluster"):
            raise StackError(f"REDIS must be single or cluster, not {redis!r}.")
        run = Path(env.get("STACK_DIR", ROOT / ".run")).resolve()
        if len(str(run)) > 70:  # sun_path holds 108 bytes, and HAProxy and supervisord append to the names
            raise StackError(f"STACK_DIR has more than 70 characters, too long for Unix sockets: {run}")
        return cls(
            run=run,
            lb_port=port("LB_PORT", 8080),
            admin_port=port("LB_ADMIN_PORT", 8404),
            node_port=port("NODE_PORT", 9001),
            redis=redis,
        )

    @property
    def key_file(self) -> Path:
        return self.run / "api-key"

    def api_key(self) -> str:
        """The key of the HTTP API: GATEWAY_API_KEY if set, otherwise generated once and kept between runs.

        `key_file` contains it in both cases, so that the printed curl command works.
        """
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = self.key_file.read_text().strip() if self.key_file.exists() else ""
        key = os.environ.get("GATEWAY_API_KEY") or kept or secrets.token_urlsafe(24)
        if key != kept:
            self.key_file.unlink(missing_ok=True)
            with open(os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(key + "\n")
        return key

    def relative(self, path: Path) -> str:
        """The path relative to the current folder, if it is inside."""
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
