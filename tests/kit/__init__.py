"""The test kit: processes of a real cluster, a client, and waits for a condition."""
