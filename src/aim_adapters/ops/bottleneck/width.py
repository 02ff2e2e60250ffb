"""The width of an adapter's hidden layer in memory."""


def padded(width: int) -> int:
    """Return the columns that `hidden` fills for an adapter's width.

    One more, of ones, and then zeros up to a multiple of 16. The column of ones carries the up-projection's bias,
    forwards, and its gradient, backwards.
    """
    return -(-(width + 1) // 16) * 16
