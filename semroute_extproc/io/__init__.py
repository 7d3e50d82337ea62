"""Small helpers for the outside world: whole-file writes, an HTTP client, file watching, usable cores."""
