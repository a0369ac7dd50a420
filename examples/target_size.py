"""The highest quality that fits into so many bytes, and the lowest that reaches a PSNR.

python examples/target_size.py
"""

from dca_fast import Codec, InputError, inspect
from dca_fast.testing import landscape

codec = Codec()
picture = landscape(256, 384)

for goal in ({"max_bytes": 8000}, {"bpp": 0.5}, {"psnr": 33}):
    data = codec.encode_to(picture, **goal)
    print(f"{goal}: quality {inspect(data).quality:g}, {len(data):,} bytes")

try:
    codec.encode_to(picture, max_bytes=100)
except InputError as error:  # no quality does it
    print("100 bytes:", error)
