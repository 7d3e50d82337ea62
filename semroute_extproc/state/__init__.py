"""State between requests: pool load, budgets and conversations."""
