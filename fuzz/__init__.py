"""Random hostile input: it may end only the sender's own request or socket.

__main__   SEED=, MINUTES=, TARGETS=, ROUND=
run        runs rounds of every target until the time is over or something is found
pure       targets without processes: frames, messages, control messages, envelopes, settings, topic files, names
clients    both clients against a model of the server (tests/model)
live       a running node: sockets, handshakes, requests, and the memory that it holds afterwards
api        the HTTP API, from its OpenAPI document

A round takes all its choices from one seed, made of SEED, the target's name and the round's number. A finding names
them, and they are enough to repeat the round.
"""
