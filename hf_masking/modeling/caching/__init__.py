"""What lives as long as a cache."""
