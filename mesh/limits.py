"""Limits and deadlines: each with its unit in the name, its reason beside it, and a test."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PROTOCOL_VERSION: Final = 1

# --- sockets -------------------------------------------------------------------------------------
TLS_HANDSHAKE_TIMEOUT_S: Final = 5.0  # a phone on bad Wi-Fi needs one; a silent socket gets no more
HELLO_TIMEOUT_S: Final = 5.0  # a link that says nothing after the handshake is closed
DIAL_TIMEOUT_S: Final = 3.0  # connect and handshake; a live host on a LAN answers in milliseconds
PROBE_TIMEOUT_S: Final = 1.0  # one look at a peer whose link broke, before silence has to decide
MAX_UNKNOWN_SOCKETS: Final = 32  # in handshake or before hello, all addresses together
MAX_UNKNOWN_SOCKETS_PER_HOST: Final = 4

# --- messages ------------------------------------------------------------------------------------
MAX_CONTROL_BYTES: Final = 64 * KIB  # bounds what msgpack may blow up to: 5 MB, 4 ms
MAX_CONTROL_ITEMS: Final = 4096  # per array or map
MAX_CONTROL_DEPTH: Final = 12
MAX_NAME_CHARS: Final = 64

# --- tensor frames -------------------------------------------------------------------------------
TENSOR_TILE_BYTES: Final = 256 * KIB  # 17 ms at 125 Mbit/s; more gains nothing on a LAN
MAX_TENSOR_FRAME_BYTES: Final = 1 * MIB  # refused above, before anything is allocated
MAX_TENSOR_BYTES: Final = 256 * MIB  # one step's whole tensor, all tiles
MAX_TENSOR_DIM: Final = 1 << 20
MAX_HEADER_BYTES: Final = 200  # what a frame may weigh beside its activation
FRAMES_IN_FLIGHT: Final = 8  # per link, unacknowledged; then the sender waits

# --- mesh ----------------------------------------------------------------------------------------
MAX_MEMBERS: Final = 64  # all-to-all heartbeats are meant for 16; this is where we refuse
MAX_CANDIDATES: Final = 64  # mDNS hints kept
MAX_SESSIONS: Final = 32  # conversations at once on one device
