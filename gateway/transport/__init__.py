"""What a client is connected by: octets in, prepared frames out."""
