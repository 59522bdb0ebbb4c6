"""How long until the next try, or never: pure, with a quota: an outage is not made worse by retries."""

from attrs import define, field, frozen, validators


def _bounded(default: float) -> float:
    return field(default=default, validator=[validators.ge(0), validators.le(86_400)])


@frozen(kw_only=True)
class Retry:
    """Full jitter: uniform(0, min(cap, base * 2^n)). What the server asked for wins, up to ``longest_wait`` seconds.

    ``attempts=1`` never tries again. ValueError for numbers that are none, or negative.
    """

    attempts: int = field(default=3, validator=[validators.instance_of(int), validators.ge(1)])
    seconds: float = _bounded(0.5)
    cap: float = _bounded(20.0)
    longest_wait: float = _bounded(120.0)

    def delay(self, attempt: int, chance: float, asked: float | None = None) -> float | None:
        """Seconds to wait after try number ``attempt`` (from 1), or None to give up. ``chance`` is in [0, 1)."""
        if attempt >= self.attempts:
            return None
        if asked is not None:
            return asked if asked <= self.longest_wait else None
        return chance * min(self.cap, self.seconds * 2 ** min(attempt, 30))


@define
class Quota:
    """What all calls of a client may spend on retries together; successes give it back."""

    capacity: int = 500
    price: int = 5
    left: int = 500

    def spend(self) -> bool:
        if self.left < self.price:
            return False
        self.left -= self.price
        return True

    def give_back(self, retried: int) -> None:
        """After a success: what its retries took, and one for each that needed none."""
        self.left = min(self.capacity, self.left + (retried * self.price or 1))
