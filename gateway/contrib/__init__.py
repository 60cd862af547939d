"""Integrations with web frameworks. Each needs its framework, which the package does not install."""
