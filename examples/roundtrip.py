"""A picture to bytes and back.

python examples/roundtrip.py
"""

import numpy as np

from dca_fast import Codec, inspect
from dca_fast.testing import landscape

picture = landscape(256, 384)  # uint8 [H, W, 3]; a Pillow image, a tensor or a path would do as well
codec = Codec()
data = codec.encode(picture, quality=60)
decoded = codec.decode(data, output="numpy")

error = np.mean((decoded.astype(float) - picture) ** 2)
print(f"{len(data):,} bytes, {inspect(data).bpp:.2f} bits per pixel, PSNR {10 * np.log10(255**2 / error):.1f} dB")

# The number of threads changes no byte and no pixel.
one = Codec(threads=1)
print("one thread, same bytes:", one.encode(picture, quality=60) == data)
print("one thread, same pixels:", np.array_equal(one.decode(data, output="numpy"), decoded))
