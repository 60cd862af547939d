import os
import sys

from gateway.settings import Settings, SettingsError


def main():
    from gateway.server import serve

    try:
        sys.exit(serve(Settings.from_env(os.environ)))
    except SettingsError as e:
        sys.exit(str(e))
