"""Counting what of the training data cannot be used, and giving up where it is too much."""

from __future__ import annotations

from collections.abc import Callable

from dit4sr.errors import UserError


class UnusableSample(Exception):  # noqa: N818
    """A sample that cannot be trained on; ``reason`` is short, for counting, and the message says where."""

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


class InUnreadableShard(UnusableSample):  # noqa: N818
    """A sample of a shard that cannot be read as a whole."""

    def __init__(self, location: str) -> None:
        super().__init__("in an unreadable shard", location)


class Tally:
    """Counts unusable samples and shards, reports the 1st, 2nd, 4th, 8th … of each kind, and gives up at too many.

    Args:
        max_bad_share: of the samples seen so far, and of all shards, that may be unusable.
        report: told of them, a line each.
    """

    def __init__(self, max_bad_share: float, report: Callable[[str], None]) -> None:
        self.seen = 0
        self.reasons: dict[str, int] = {}
        self.bad_shards: dict[str, str] = {}
        self._in_a_row = 0
        self._bad = 0
        self._max_bad_share = max_bad_share
        self._report = report

    def good(self) -> None:
        """Count one position of the stream that was filled."""
        self.seen += 1
        self._in_a_row = 0

    def bad(self, error: UnusableSample, *, own: bool) -> None:
        """Count one unusable sample; ``own`` is False where it was only tried as a stand-in.

        Raises:
            UserError: a share above the limit of at least 100 samples, or 100 in a row, was unusable.
        """
        if own:
            count = self.reasons[error.reason] = self.reasons.get(error.reason, 0) + 1
            if _is_power_of_two(count):
                self._report(f"unusable sample skipped ({count} so far): {error}")
        if isinstance(error, InUnreadableShard):
            return  # judged by the share of the shards: these come in long runs
        self._in_a_row += 1
        self._bad += own
        if self._in_a_row >= 100 or (self.seen >= 100 and self._bad > self._max_bad_share * (self.seen + 1)):
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
            raise UserError(
                f"too many unusable training samples ({counts} of {self.seen + 1}; the last is {error}): "
                "prepare the shards again (where they are too small, by a larger patch=), or raise data.max_bad_share."
            )

    def bad_shard(self, location: str, reason: str, shards: int) -> None:
        """Count one unreadable shard of a source of ``shards`` shards; each is counted once.

        Raises:
            UserError: more than the share of all the source's shards are unreadable, or all of them.
        """
        if location in self.bad_shards:
            return
        self.bad_shards[location] = reason
        count = len(self.bad_shards)
        if count > self._max_bad_share * shards or count == shards:
            raise UserError(
                f"{count} of {shards} shards cannot be read, more than data.max_bad_share={self._max_bad_share:g}; "
                f"the last: {reason}"
            )
        if _is_power_of_two(count):
            self._report(f"unreadable shard skipped ({count} of {shards} so far): {reason}")


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0
