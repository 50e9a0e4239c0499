"""A trained model behind HTTP: one process, one set of weights, both stages of search."""
