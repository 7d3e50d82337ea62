"""`semroute replay` and `semroute outcomes`: what the decision log says about another configuration."""
