"""The clients of this node: admission, limits, and the commands that they send."""
