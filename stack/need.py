"""Installs missing packages with apt, or prints in one sentence what to install.

`python3 -m stack.need redis-server haproxy` runs before .venv exists, so this file uses only the standard
library.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

# Debian installs haproxy outside a user's PATH.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# The program of a package, if it differs from the package's name.
_PROGRAMS = {"nodejs": "node", "iproute2": "ip", "nftables": "nft", "prometheus": "promtool"}


class MissingError(Exception):
    """A package is missing, and this process may not install it."""


def tool(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=PATH)


def need(*packages: str) -> None:
    """Returns when every Debian package is installed; raises MissingError if one cannot be installed."""
    missing = [package for package in packages if not _present(package)]
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or tool("apt-get") is None:
        raise MissingError(f"Please install {names} first (Debian, Ubuntu: sudo apt-get install {names}).")
    print(f"Installing {names} ...", flush=True)
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(
            [*apt, *command], env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingError(f"apt-get could not install {names}: {done.stderr.strip() or done.stdout.strip()}")


def _present(package: str) -> bool:
    if package == "python3-venv":  # Debian's Python does not include ensurepip
        return importlib.util.find_spec("ensurepip") is not None
    if package == "libc6-dev":
        return os.path.exists("/usr/include/stdio.h")
    return tool(_PROGRAMS.get(package, package)) is not None


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - any `python3` may run this file
        print(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 1
    try:
        need(*sys.argv[1:])
    except MissingError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
