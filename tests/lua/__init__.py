"""Direct tests of the Lua steps in gateway/cluster/lua, on a real redis-server."""
