"""One model test of both clients: random cases against a model of the server, in virtual time, and an oracle.

server.py          the server's side of the wire, in memory; it refuses what an honest client never sends
play.py            one case: what happens in which order, and what must be true of it
cases.py           random cases by a seed, and the shortest part of one that still fails
python_client.py   `gateway.client` as the player sees it
browser_client.py  gateway.js, in a Node.js process (browser_client.mjs)
"""
