"""Centrifugo's client protocol, in JSON and in Protobuf, for its client libraries."""
