"""Look into a wrapped model: what it costs, and what it attends to."""
