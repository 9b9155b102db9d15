"""What users can catch."""


class UnsupportedModelError(ValueError):
    """The model cannot be patched: its attention does not go where a mask would reach it, or the checks failed."""
