"""What a node serves beside the socket."""
