"""The whole cluster on one machine, for `make up` and its siblings.

- __main__.py       up, down, status, logs: picks the engine, prints what a person needs
- place.py          where this stack lives and listens; its API key
- compose.py        the engine where Docker answers: compose.yaml
- local.py          the engine elsewhere: the same processes under supervisord
- configuration.py  what the local stack's supervisord and HAProxy are told
- ports.py          whether its ports are free, and who has them
- balancer.py       what HAProxy says of the nodes, the same on both engines
- waiting.py        until something holds, with a deadline
- need.py           tools the machine lacks, installed by apt or named
"""
