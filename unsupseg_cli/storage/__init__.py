"""Object storage: addresses, objects, claims with a lease, the local cache, and the workspace in a bucket."""
