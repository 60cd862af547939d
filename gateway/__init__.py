"""A cluster of WebSocket gateways. The floors of the house, top to bottom; imports go only downward:

__main__
cli/         commands for people
server       uvicorn with a paced end
app          settings -> Starlette application: the composition root
web/         what is served beside the socket: API, health, pages
node         one gateway process: its place in the cluster, its life
departures   clients sent away: all when the node leaves, some when others have room
reporter     how the node is, measured and told to administrators
clients      the node's connections: what a client says is carried out here
memberships  clients let into audiences and out of them
errands      what a client asked for that takes its time
calls        what a client asks of the back end
limits       what clients may say, and have held for them
admission    room for connections: of a user, of an address
outbox       what is sent to one client
relay        between hub and bus: publish, and what the cluster says
transport/   what a client is connected by: octets in, prepared frames out, back-pressure
streams      topics with history: in order, read again where something is missing
conflation   of what comes within a window, the last
presence     who is on a topic, and who came and went
announcer    tells administrators how the services are
heartbeat    the node's pulse: its lease, and whether it hears what it says
publisher    publishing from a Python program, without a node
auth/        whose word a node takes: keys, tokens, what is revoked, what the back end allows
client/      the Python client
cluster/     all that lives in Redis, and nothing else
backend      the HTTP back end: asked with a deadline, left alone while it is ill
metrics, settings, logs
core/        the pure part: the wire, the rules, the fan-out. No loop, no Redis, no clock

Each package's own floors stand in pyproject.toml, and `make lint` holds them.
"""

__version__ = "0.1.0"
