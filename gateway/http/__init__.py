"""Everything that a node serves beside the WebSockets."""
