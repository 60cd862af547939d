"""Break a real cluster on purpose, and count what its clients lost.  `make chaos`

__main__.py    the command: options from the environment, exit code
plan.py        which faults, how many clients, for how long                (pure)
ledger.py      what one client had of one topic: lost, doubled, told       (pure)
report.py      a phase's figures, its broken promises, the table           (pure)
network.py     hosts of their own for all of them, and cables to pull
stack.py       a private Redis or several, gateway nodes and HAProxy, in a folder of their own
publisher.py   numbered messages, each published exactly once
listener.py    a client with the reference logic, and its ledgers
faults.py      what can happen
run.py         one fault after another, and what became of the messages meanwhile
"""
