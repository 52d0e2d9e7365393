# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How sure a success rate is, and the difference of two that were measured on the same episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as shares of 1; (0, 1) without trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Paired:
    """Two results on the same episodes: the second minus the first.

    Attributes:
        pairs: episodes that both have.
        first: successes of the first.
        second: successes of the second.
        gained: episodes that only the second solved.
        lost: episodes that only the first solved.
        difference: success rate of the second minus that of the first, as a share of 1.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: of McNemar's exact test that gaining and losing are equally likely.
    """

    pairs: int
    first: int
    second: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def discordant(self) -> int:
        """Episodes that one solved and the other did not."""
        return self.gained + self.lost

    def to_text(self) -> str:
        """One line."""
        return (
            f"{self.pairs} paired episodes: {100 * self.difference:+.1f} points "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}), {self.discordant} discordant "
            f"({self.gained} gained, {self.lost} lost), p = {self.p_value:.2g}"
        )


def paired(gained: int, lost: int, both: int, neither: int, z: float = Z95) -> Paired:
    """Compare two results by what each pair of episodes gave.

    The interval is normal with one episode added to each kind of discordant pair, so that it does not shrink to
    nothing where there are none.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", J. Educ. Behav. Stat. 37, 2012; Q. McNemar, Psychometrika 12, 1947 (exact form).
    """
    pairs = gained + lost + both + neither
    difference = (gained - lost) / pairs if pairs else 0.0
    up, down = (gained + 1) / (pairs + 2), (lost + 1) / (pairs + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Paired(pairs, both + lost, both + gained, gained, lost, difference, low, high, _exact(gained, lost))


def _exact(gained: int, lost: int) -> float:
    """Two-sided binomial test of `gained` among all discordant pairs against one half."""
    count, least = gained + lost, min(gained, lost)
    # In logarithms: 2^-1000 and binomials of thousands do not fit a float.
    terms = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(least + 1))
    return min(1.0, 2 * sum(math.exp(term - count * math.log(2)) for term in terms))
