"""The transports of clients: WebSockets and HTTP streams. They receive bytes and send encoded frames."""
