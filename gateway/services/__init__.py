"""Background services of the cluster, with singletons and circuit breakers."""
