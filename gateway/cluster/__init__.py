"""State that nodes share in Redis. A node can rebuild everything it writes there from its own memory."""
