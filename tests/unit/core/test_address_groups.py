"""The address, or the IPv6 network, that a connection counts for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.address_groups import AddressGroups

SOURCES = AddressGroups(["127.0.0.1", "10.1.2.3/8", "2001:db8:ffff::/48"])


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("127.0.0.2", "127.0.0.2"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_an_address_counts_for_itself_and_an_ipv6_address_for_its_network(ip: str, source: str) -> None:
    assert SOURCES.of(ip) == source


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.255.0.1", "::ffff:10.0.0.1", "2001:db8:ffff::5"])
def test_a_trusted_proxy_counts_for_no_address(ip: str) -> None:
    assert SOURCES.of(ip) is None


@given(st.text())
def test_any_text_counts_for_one_address_or_for_none(ip: str) -> None:
    assert SOURCES.of(ip) is None or SOURCES.of(ip) != ""


@given(st.ip_addresses(v=6))
def test_one_network_is_one_source(ip: object) -> None:
    source = AddressGroups([]).of(str(ip))
    assert source is not None and AddressGroups([]).of(source.partition("/")[0]) == source
