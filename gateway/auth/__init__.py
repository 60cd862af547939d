"""Authentication and permissions: API keys, tokens, key sets, and the permissions that the back end decides."""
