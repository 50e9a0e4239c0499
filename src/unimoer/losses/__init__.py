"""Pure functions of tensors: `(loss, metrics)`. A loss never sees the model."""
