"""Publish with Centrifugo's Python library, unmodified.

`pip install cent`, then `python examples/centrifugo/publish.py http://localhost:8404/api KEY hello`.
KEY is the value of GATEWAY_API_KEY.
"""

from __future__ import annotations

import sys

from cent import Client, HistoryRequest, PublishRequest

_, url, key, text = sys.argv
client = Client(url, key)
try:
    client.publish(PublishRequest(channel="chat:lobby", data={"text": text}))
    print([one.data for one in client.history(HistoryRequest(channel="chat:lobby", limit=-1)).publications])
finally:
    client.close()
