"""What the two halves of a stream tell each other.

resume       stream id (8 bytes), number wanted next (8 bytes); or nothing, when it knows no
             stream                                  receiver to sender
start        stream id (8 bytes), number of the first frame to come (8 bytes)
frame        number (8 bytes), header, payload           sender to receiver
acknowledge  number wanted next (8 bytes), and for each frame below it since the last one, how
             many microseconds ago it came (4 bytes)     receiver to sender
"""

from __future__ import annotations

import struct
from typing import Final

from mesh.limits import MAX_TENSOR_FRAME_BYTES

STREAM_ID_BYTES: Final = 8
NUMBER: Final = struct.Struct("<Q")
AGE: Final = struct.Struct("<I")
START: Final = struct.Struct(f"<{STREAM_ID_BYTES}sQ")
MICROSECONDS: Final = 1e6  # in a second
PREFIX_BYTES: Final = NUMBER.size
MAX_STREAM_MESSAGE_BYTES: Final = PREFIX_BYTES + MAX_TENSOR_FRAME_BYTES
