"""One gateway process: its lifecycle, lease, readiness, periodic work and control channel."""
