"""Redis itself: topology, client, pipelines, pub/sub, envelopes, history, snapshots, keys."""
