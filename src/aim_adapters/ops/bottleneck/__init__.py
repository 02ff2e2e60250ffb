"""The parts of an adapter: its up-projection onto the residual stream, and the backward pass to its hidden layer."""
