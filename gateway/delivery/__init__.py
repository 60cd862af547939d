"""Publish and deliver on this node: publisher, dispatcher, subscriptions, recovery, presence."""
