"""Reading checkpoints and adapters: the base model, the mask, and its learned parameters."""
