"""python-socketio with its Redis manager. `python python_socketio_server.py <port> <redis port>`"""

from __future__ import annotations

import sys

import socketio  # type: ignore[import-not-found]  # installed by the bench
import uvicorn

io = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(f"redis://127.0.0.1:{sys.argv[2]}/0")
)


@io.event  # type: ignore[untyped-decorator]
async def subscribe(sid: str, topic: str) -> bool:
    """Adds the client to the room of `topic`."""
    await io.enter_room(sid, topic)
    return True


if __name__ == "__main__":
    uvicorn.run(
        socketio.ASGIApp(io), host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", backlog=4096,
        ws_per_message_deflate=False, log_level="warning", access_log=False,
    )  # fmt: skip
