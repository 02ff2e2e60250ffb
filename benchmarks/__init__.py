"""Benchmarks: one file per question, each run as ``python -m benchmarks.<room>.<name>``.

- ``timing``: what measures;
- ``checks``: what checks rather than measures;
- ``motion``: clips that need a sense of time, to compare ways to adapt;
- ``report``: what makes tables and pictures of the results;
- ``harness``: what all of them share, and the lowest: it imports none of the others;
- ``results``: what was measured, as JSON, or as CSV where runs add rows.
"""

import warnings

# How long a step takes does not depend on the weights, so most of them are random.
warnings.filterwarnings("ignore", "the image model looks untrained", UserWarning)
