"""The pure rules of the gateway, without event loop, Redis or clock: time and randomness are arguments."""
