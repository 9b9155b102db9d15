"""What each command takes and says of itself. Nothing here imports torch, so that `--help` does not wait for it."""
