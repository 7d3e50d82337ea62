"""What `fit`, `evaluate` and `profile` share: tables, splits, metrics, embeddings and progress bars."""
