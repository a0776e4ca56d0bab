"""The range that an objective declares for an option of its own, so that tuning may vary it. Loads no torch."""

from dataclasses import dataclass

Value = float | str  # what an option that varies may be


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, or a choice of a few.

    Args:
        low: lower end, included.
        high: upper end, included.
        log: whether equal factors, not equal distances, are equally likely.
        choices: instead of ends.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices and not (self.low <= self.high and (self.low > 0 or not self.log)):
            raise ValueError(f"{self!r} is no range: low must not exceed high, and a logarithmic one must be positive")

    @classmethod
    def of(cls, *choices: Value) -> "Range":
        """A choice of a few values."""
        return cls(choices=choices)

    def __str__(self) -> str:
        """As a person reads it."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"
