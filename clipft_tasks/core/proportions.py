"""How sure one can be of a share: Wilson's interval, which is never empty, not even of a perfect score."""

import math


def wilson(right: float, count: float, quantile: float = 1.96) -> tuple[float, float]:
    """The interval of the share right / count (Wilson 1927); (0, 1) when nothing was counted.

    Args:
        right, count: may be fractions: as many rows as would be as sure.
        quantile: standard errors that it reaches; 1.96 for 95%.
    """
    if not count:
        return 0.0, 1.0
    share, spread = right / count, quantile**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = quantile * math.sqrt(max(0.0, share * (1 - share)) / count + spread / (4 * count)) / (1 + spread)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
