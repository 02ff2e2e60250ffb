"""Row-wise parts of a frozen block: LayerNorm and the activation of its MLP, forward and backward."""
