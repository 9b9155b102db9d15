"""The model under the mask, patched or not: what its config says, its limits, its mode and its device."""
