"""Everything that lives for one forward: its hooks, its arguments, the mask slot and the attention function."""
