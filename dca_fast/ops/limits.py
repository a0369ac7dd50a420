"""Ranges of the integer operations (docs/spec/numerics.md)."""

LIMIT8 = 127
LIMIT16 = 32767
LIMIT_MEAN = 1 << 20  # of means in 1/256, scores and scales in 1/16
LIMIT_RESIDUAL, LIMIT_VALUE = 1 << 21, 1 << 22  # of residuals and values in a site's own quantiser steps
MAX_ROW = 127  # last row of the scale table
