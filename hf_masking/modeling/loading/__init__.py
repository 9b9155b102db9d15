"""What a checkpoint or an adapter holds beside the model."""
