"""What carries frames: WebSockets, Server-Sent Events, long polling."""
