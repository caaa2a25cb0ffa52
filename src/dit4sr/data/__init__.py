"""Photos, shards, degradation and the data module."""
