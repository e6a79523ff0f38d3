"""Whether a source of randomness is broken (NIST SP 800-90B): tests that find a stuck one, never proof of a good one.

https://doi.org/10.6028/NIST.SP.800-90B
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

WINDOW: Final = 512
"""Samples of one turn of the adaptive proportion test, for samples of more than two values (section 4.4.2)."""

STARTUP: Final = 1024
"""Samples that are tested before a source is used (section 4.3)."""

_ALPHA: Final = 20
"""A healthy source fails a test once in 2 to the power of this."""


def repetition_cutoff(entropy: float) -> int:
    """How many equal samples in a row are too many, of a source with ``entropy`` bits in each (section 4.4.1)."""
    return 1 + math.ceil(_ALPHA / entropy)


def proportion_cutoff(entropy: float) -> int:
    """How many samples of a window may not be its first one's equal, of a source with ``entropy`` bits in each.

    One more than the critical value of the binomial distribution (section 4.4.2), in whole numbers.
    """
    likely = 2.0**-entropy
    total = 0.0
    for count in range(WINDOW + 1):
        total += math.comb(WINDOW, count) * likely**count * (1 - likely) ** (WINDOW - count)
        if total >= 1 - 2.0**-_ALPHA:
            return 1 + count
    return 1 + WINDOW


def repeats(samples: bytes, entropy: float) -> bool:
    """Whether the repetition count test fails (section 4.4.1)."""
    cutoff, last, run = repetition_cutoff(entropy), -1, 0
    for sample in samples:
        last, run = sample, run + 1 if sample == last else 1
        if run >= cutoff:
            return True
    return False


def dominated(samples: bytes, entropy: float) -> bool:
    """Whether the adaptive proportion test fails in one of the whole windows (section 4.4.2)."""
    cutoff = proportion_cutoff(entropy)
    whole = range(0, len(samples) - WINDOW + 1, WINDOW)
    return any(samples.count(samples[at], at, at + WINDOW) >= cutoff for at in whole)


def most_common_value(samples: bytes) -> float:
    """Bits in a sample by the most common value estimate (section 6.3.1): what can be told from the samples alone.

    Of few samples it is low whatever the source, and of a counter it is high: it is for people, and decides nothing.
    """
    count = len(samples)
    if count < 2:
        return 0.0
    share = Counter(samples).most_common(1)[0][1] / count
    bound = min(1.0, share + 2.576 * math.sqrt(share * (1 - share) / (count - 1)))
    return max(0.0, -math.log2(bound))
