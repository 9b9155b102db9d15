"""Everything that lives from `patch_model` until `unpatch_model`."""
