"""Causes failures in a real cluster and counts what its clients lost.  `make chaos`

__main__.py    the command: options from the environment, exit code
plan.py        which faults, how many clients, for how long                       (pure)
ledger.py      what one client received on one topic: lost, duplicated, reported  (pure)
report.py      a phase's figures, its broken promises, the table                  (pure)
network.py     a host (network namespace) for each process, and network cuts
stack.py       private Redis servers, gateway nodes and HAProxy, in their own folder
publisher.py   numbered messages, each published exactly once
listener.py    a client with its ledgers, and that of gateway.client
centrifugo_listener.py    that of centrifuge-python
faults.py      the faults
run.py         runs one fault after another and checks the messages
"""
