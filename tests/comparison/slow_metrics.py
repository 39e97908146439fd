"""Agreement of two maps with NaN where either is unknown, by SciPy."""

import numpy as np
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import spearmanr


def known(first, second):
    a, b = (np.asarray(one, dtype=np.float64).ravel() for one in (first, second))
    both = ~(np.isnan(a) | np.isnan(b))
    return a[both], b[both]


SLOW = {
    "spearman": lambda first, second: spearmanr(*known(first, second)).statistic,
    "jensen_shannon": lambda first, second: jensenshannon(*known(first, second)) ** 2,
    "cosine": lambda first, second: 1 - cosine(*known(first, second)),
}
