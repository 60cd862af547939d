"""Protocols that clients speak, one package each. `native` is the gateway's own."""
