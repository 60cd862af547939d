"""Shared state under node leases: registry, presence, connection limits, quotas."""
