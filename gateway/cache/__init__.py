"""The cache that all nodes share."""
