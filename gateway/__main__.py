"""The ``gateway`` command, which is also ``python -m gateway``."""

import sys


def main() -> None:
    """Run the command. It needs the extra ``server`` of the package, which a program that only publishes leaves out."""
    try:
        from gateway.cli.main import main as run
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.partition(".")[0] == "gateway":
            raise
        sys.exit(
            f'gateway: {missing.name} is not installed. The command needs the extra "server" of '
            "websocket-gateway-cluster; in a clone: pip install '.[server]'"
        )
    run()


if __name__ == "__main__":
    main()
