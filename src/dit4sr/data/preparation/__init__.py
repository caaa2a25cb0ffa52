"""From photos of any source to shards: the parts that the verb ``prepare`` is made of."""
