"""The cluster on one machine, for `make up` and the related targets.

- __main__.py       up, restart, down, status, logs: selects the engine, prints the result
- place.py          folder, ports and API key of a stack
- compose.py        engine for Docker Compose: compose.yaml
- local.py          engine without Docker: the same processes under supervisord
- configuration.py  configuration of the local stack's supervisord and HAProxy
- ports.py          checks that the ports are free, names the process that uses one
- balancer.py       state of the nodes as HAProxy reports it, for both engines
- waiting.py        waits for a condition, with a deadline
- need.py           installs missing tools with apt, or names them
"""
