"""Centrifugo's server HTTP API on our keys and scopes, for its server libraries: a module for each noun."""
