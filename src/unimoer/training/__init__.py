"""Data, model and losses become a trained run."""
