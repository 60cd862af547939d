"""All that lives in Redis, and nothing else: what a node writes there can be rebuilt from its memory."""
