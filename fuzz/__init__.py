"""Hostile input by chance: whatever comes in, nothing but the offender's own request or socket may end.

__main__   SEED=, MINUTES=, TARGETS=, ROUND=
run        rounds of every target until the time is up; the first finding ends it
pure       what needs no process: frames, messages, orders, envelopes, settings, topic files, topic names
clients    both clients against a model of the server (tests/model)
live       a node: sockets, handshakes, requests; what it still holds when they are gone
api        the HTTP API, from its own description

A round draws all its choices from one seed, made of SEED, the target's name and the round's number. A finding names
them, and the same round is played again by them alone.
"""
