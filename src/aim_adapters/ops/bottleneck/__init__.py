"""The hidden layer of an adapter, as columns beside those of a frozen layer: one product gives both branches."""


def padded(width: int) -> int:
    """Return the columns that `hidden` fills for an adapter's width.

    One more, of ones, and then zeros up to a multiple of 16. The column of ones carries the up-projection's bias,
    forwards, and its gradient, backwards.
    """
    return -(-(width + 1) // 16) * 16
