"""What users can catch."""


class UnsupportedModelError(ValueError):
    """The model cannot be patched: its attention does not go where a mask would reach it, or the checks failed."""


class FailedCheckError(UnsupportedModelError):
    """The checks of a patched model fail, or cannot run; ``check=False`` leaves them out.

    Parameters:
        reason: what is wrong, without the advice that the message ends in.
        rows: the checks that fail.
    """

    def __init__(self, reason: str, *rows: str) -> None:
        super().__init__(reason, *rows)

    def __str__(self) -> str:
        reason, *rows = self.args
        if not rows:
            return f"{reason}; patch with check=False"
        return "\n".join([f"{reason} (check=False patches it all the same):", *rows])
