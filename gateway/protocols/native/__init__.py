"""The gateway's own protocol: one JSON object a text frame. docs/protocol.md is the public description."""
