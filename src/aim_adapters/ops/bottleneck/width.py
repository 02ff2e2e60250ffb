"""The widths of hidden layers in memory."""


def padded(width: int) -> int:
    """Return the columns that `hidden` fills for an adapter's width.

    One more, of ones, and then zeros up to a multiple of 16. The column of ones carries the up-projection's bias,
    forwards, and its gradient, backwards.
    """
    return -(-(width + 1) // 16) * 16


def aligned(units: int) -> int:
    """Return the columns that a gated MLP's hidden units are given: rows of others would take a slow path in products.

    Args:
        units: K, up to a multiple of 8, so that two bytes each make a multiple of 16.
    """
    return -(-units // 8) * 8
