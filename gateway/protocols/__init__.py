"""What is specific to one client protocol: a package each."""
