"""Rectangles of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

from dca_fast.errors import InputError

__all__ = ["Region"]


class Region(NamedTuple):
    """A rectangle of a picture, in pixels; width and height are at least 1."""

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def whole(cls, height: int, width: int) -> Region:
        """All of a picture of so many pixels."""
        return cls(0, 0, width, height)

    @classmethod
    def of(cls, values: Sequence[int], height: int, width: int) -> Region:
        """What a caller asks for, of a picture of so many pixels.

        Raises:
            InputError: not four whole numbers, empty, or not within the picture.
        """
        try:
            numbers = [index(value) for value in values if not isinstance(value, bool)]
            region = cls(*numbers)
        except TypeError as error:
            raise InputError(f"a region is (left, top, width, height) in whole pixels, got {values!r}") from error
        if min(region.left, region.top) < 0 or min(region.width, region.height) < 1:
            raise InputError(f"a region begins at 0 or later and has pixels, got {tuple(region)}")
        if region.left + region.width > width or region.top + region.height > height:
            raise InputError(f"the region {tuple(region)} is not within the {width} x {height} pixels")
        return region

    def around(self, reach: int, height: int, width: int) -> Region:
        """With so many pixels more on each side, as far as a picture of this size has them."""
        left, top = max(0, self.left - reach), max(0, self.top - reach)
        right, bottom = min(width, self.left + self.width + reach), min(height, self.top + self.height + reach)
        return Region(left, top, right - left, bottom - top)

    def of_array(self, top: int = 0, left: int = 0) -> tuple[slice, slice]:
        """Its rows and columns in an array that begins at this pixel."""
        top, left = self.top - top, self.left - left
        return slice(top, top + self.height), slice(left, left + self.width)
