"""Token batches in, embeddings or scores out."""
