"""Errors of Redis connections are explained in a sentence, not as a class or a number."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.broker.errors import explain


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "no answer in time"),
        (RedisTimeoutError("Timeout connecting to server"), "no answer in time"),
        (
            RedisConnectionError("Error 111 connecting to 10.0.0.7:6379. Connection refused."),
            "10.0.0.7:6379: Connection refused.",
        ),
        (
            RedisConnectionError("Error -2 connecting to redis:6379. Name or service not known."),
            "redis:6379: Name or service not known.",
        ),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (RedisConnectionError("Connection closed by server."), "Connection closed by server."),
        (ConnectionResetError(), "the connection was lost"),
        (RedisError(), "the connection was lost"),
    ],
)
def test_an_error_is_a_sentence(error: Exception, says: str) -> None:
    assert explain(error) == says
