"""The HTTP endpoints of a node: the API, pages, health checks, and the handshakes of clients."""
