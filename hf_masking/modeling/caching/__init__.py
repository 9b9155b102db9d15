"""Everything that lives as long as a cache: its layers, and the rule by which they evict keys."""
