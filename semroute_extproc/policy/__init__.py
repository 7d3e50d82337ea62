"""Policy: constraints, then rules, then a strategy among the pools that are left. Pure."""
