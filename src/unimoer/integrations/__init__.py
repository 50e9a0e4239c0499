"""A trained model inside other people's frameworks: one file each, one extra each."""
