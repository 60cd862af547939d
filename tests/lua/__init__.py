"""Direct tests of the Lua steps in gateway/broker/lua, on a real redis-server."""
