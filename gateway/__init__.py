"""A cluster of WebSocket gateways. The floors of the house, top to bottom; imports go only downward:

__main__
cli          commands for people
checks       is everything well?
haproxy      HAProxy's servers, kept as the registry says
credentials  commands about tokens and keys
commands     what every command shares
remote       the HTTP API, as the commands ask it
tables       what the commands print
server       uvicorn with a paced end
app          settings -> Starlette application: the composition root
web/         what is served beside the socket: API, health, pages
node         one gateway process: its place in the cluster, its life
departures   clients sent away: all when the node leaves, some when others have room
clients      the node's connections: what a client says is carried out here
memberships  clients let into audiences and out of them
errands      what a client asked for that takes its time
calls        what a client asks of the back end
limits       what clients may say, and have held for them
admission    room for connections: of a user, of an address
outbox       what is sent to one client
connection   one socket: bytes in, prepared frames out, back-pressure
request      one HTTP connection, until it becomes a socket
relay        between hub and bus: publish, and what the cluster says
handshake    the opening of a socket
announcer    tells administrators how the services are
heartbeat    the node's pulse: its lease, and whether it hears what it says
trust        whose word a node takes: keys of tokens, and what is revoked
publisher    publishing from a Python program, without a node
cluster/     all that lives in Redis, and nothing else
session      one client's rules: what a message may cause                    (pure)
referee      what the back end says somebody may
permits      what a topic's rule says somebody may                           (pure)
targets      where the back end answers a REQUEST                              (pure)
auth         who someone is: tokens verified
backend      the HTTP back end: asked with a deadline, left alone while it is ill
hub          who listens to what on this node, and the fan-out               (pure)
orders       what one node asks of the others                                (pure)
replies      what a client is sent                                            (pure)
keyserver    the keys of a JWKS URL, kept fresh
apikeys      the keys of the HTTP API, and what each is good for
keyring      the keys that tokens are verified with, each bound to its algorithms
revocations  tokens that hold no more though their end has not come          (pure)
protocol     the wire: what a client may send, error codes, close codes       (pure)
frames       RFC 6455 frames: bytes -> messages, a payload -> a frame        (pure)
topics       topic names, and who may hear and say what                      (pure)
lineup       which node each server of a load balancer stands for            (pure)
balance      how many clients a node gives away, and when each goes          (pure)
figures      what a node tells of itself every few seconds                     (pure)
watchers     which load balancers have heard that the node is not ready      (pure)
sources      addresses as limits count them                                (pure)
backlog      what is held for all clients together                            (pure)
inflow       whether a node takes one socket more                            (pure)
rates        how often something may happen                                (pure)
records      what is told of a service, and what all its instances amount to (pure)
dependencies which service needs which                                       (pure)
breaker      what fails again and again is left alone for a while            (pure)
metrics, settings, logs
"""

__version__ = "0.1.0"
