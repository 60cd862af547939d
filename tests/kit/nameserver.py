"""A name server that resolves one name to given addresses, as Docker's and a headless Service's do."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Sequence

from tests.kit.process import Closing

HEAD = struct.Struct("!6H")  # RFC 1035, 4.1.1: id, flags, and how many of each kind of record follow
ANSWER = struct.Struct("!HHHIH4s")  # 4.1.3: name, type, class, TTL, length, address
ANSWERED = 0x8580  # a response, with authority, to a query that may be recursive
A, IN = 1, 1
FIRST_NAME = 0xC000 | HEAD.size  # 4.1.4: the name that stands first in the message


class NameServer(Closing):
    """Answers on `address`, over UDP. `addresses` may be changed at any time."""

    def __init__(self, addresses: Sequence[str] = ()) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        number = HEAD.unpack_from(query)[0]
        end = query.index(b"\0", HEAD.size) + 5  # of the question: a name, its type and class
        [kind] = struct.unpack_from("!H", query, end - 4)
        found = self.addresses if kind == A else []
        rows = [ANSWER.pack(FIRST_NAME, A, IN, 0, 4, ipaddress.ip_address(one).packed) for one in found]
        return HEAD.pack(number, ANSWERED, 1, len(rows), 0, 0) + query[HEAD.size : end] + b"".join(rows)

    def close(self) -> None:
        """End it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()
