"""Limits and deadlines: each with its unit in the name, its reason beside it, and a test."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PROTOCOL_VERSION: Final = 2

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

# --- what a person reads -------------------------------------------------------------------------
MAX_LOG_LINES_PER_S: Final = 10  # of one cause; a peer that floods us must not fill our disk

# --- tensor frames -------------------------------------------------------------------------------
TENSOR_TILE_BYTES: Final = 512 * KIB  # 34 ms at 125 Mbit/s; each frame wakes both ends
MAX_TENSOR_FRAME_BYTES: Final = 1 * MIB  # refused above, before anything is allocated
MAX_TENSOR_BYTES: Final = 256 * MIB  # one step's whole tensor, all tiles
MAX_TENSOR_DIM: Final = 1 << 20
MAX_HEADER_BYTES: Final = 200  # what a frame may weigh beside its activation
FRAMES_IN_FLIGHT: Final = 8  # per link, unacknowledged; then the sender waits
FRAMES_PER_ACK: Final = FRAMES_IN_FLIGHT // 2  # the other half is on its way meanwhile
ACK_DELAY_S: Final = 0.2  # for fewer: each acknowledgement wakes both ends, and nobody waits for it

# --- mesh ----------------------------------------------------------------------------------------
MAX_MEMBERS: Final = 1024  # a view of them travels in 16 pages; beyond, we refuse in words
MAX_TENSOR_PEERS: Final = 64  # whom one device exchanges tensors with; plans use far fewer
MAX_INCARNATION: Final = 1 << 62  # one more still fits a message; nobody gets there by restarting
MAX_SIGHTINGS: Final = 64  # in a beat or a greeting: 40 KB with the longest names
MAX_REMEMBERED: Final = 64  # addresses on disk: enough to find a home again, quick to write
MAX_CANDIDATES: Final = 64  # mDNS hints kept
MAX_DIALS_PER_S: Final = 10  # to addresses that never worked: anybody may announce a thousand
MAX_DIALS_AT_ONCE: Final = 20  # of them, after a quiet time: a whole home that starts together
MAX_SESSIONS: Final = 32  # conversations at once on one device
# Of the memory that may be used, for what stages gave each other. A tenth of 1 GB is a conversation
# of 12,000 tokens with 2,048 numbers each; beyond, the oldest ones replay in full.
MAX_LOG_SHARE: Final = 0.1
MAX_REQUESTS_PER_PEER: Final = 64  # handled at once for one peer; more are refused in words
MAX_OUTBOX_MESSAGES: Final = 256  # per link; a request beyond waits, a vote beyond is dropped

# --- websockets ----------------------------------------------------------------------------------
DEFAULT_PORT: Final = 8478
REQUEST_TIMEOUT_S: Final = 5.0  # the websocket request after the TLS handshake, headers included
MAX_REQUEST_LINE_BYTES: Final = 2 * KIB  # ours are 100 bytes
MAX_LINKS_PER_PEER: Final = 8  # control and tensors both ways are 3; the rest is for old ones dying
CLOSE_TIMEOUT_S: Final = 0.5  # for the other end to answer a close; then the socket is cut
MAX_CLOSE_REASON_BYTES: Final = 120  # a websocket close frame holds 123
MAX_WAITING_MESSAGES: Final = (
    16  # of a line, that nobody has taken; then nothing more is read of it
)

# --- tensor links --------------------------------------------------------------------------------
REDIAL_MIN_S: Final = 0.1  # a Wi-Fi hiccup is over sooner than a person notices
REDIAL_MAX_S: Final = 5.0  # for a peer still alive by its control link but not reachable here
MAX_PROBE_BYTES: Final = 2 * MIB  # 134 ms at 125 Mbit/s: enough to leave TCP's slow start behind
PROBE_BUDGET_S: Final = 1.0  # a slow link sends fewer probe bytes rather than take longer

# --- pieces of models ----------------------------------------------------------------------------
MAX_PIECE_BYTES: Final = 256 * KIB  # one message; 17 ms at 125 Mbit/s, 0.2 ms to hash
MAX_REFUSAL_BYTES: Final = 512  # why a piece is not given
MAX_PIECES: Final = 1 << 22  # of one model: 1 TiB at full size
MAX_MANIFEST_BYTES: Final = 160 * MIB  # 36 bytes a piece, and what comes before them
MAX_MODEL_FILES: Final = 512  # the largest models come in some 200
PIECE_WINDOW_S: Final = 0.25  # of sending is asked for ahead: enough that a link never waits
MIN_WINDOW_BYTES: Final = 512 * KIB  # asked of a source whose speed is not known yet
MAX_WINDOW_BYTES: Final = 4 * MIB  # 34 ms at 1 Gbit/s; what is lost when a source vanishes
MAX_PIECES_ASKED: Final = 64  # of one source at once, however small
MAX_PIECE_SOURCES: Final = 8  # at once, for one model; more only fight for the same link
PIECE_STALL_S: Final = 3.0  # nothing came of a source for so long: its pieces are others' to bring
MAX_DAMAGED_PIECES: Final = 3  # of one source in one transfer; then it is asked for nothing more

# --- pairing and rotation ------------------------------------------------------------------------
PAIRING_WINDOW_S: Final = 120.0  # to walk to the other device and type six digits
PAIRING_TRIES: Final = 3  # in one window: of a million codes, three guesses are 3e-6
PAIRING_EXCHANGE_S: Final = 10.0  # from connection to secret: five messages, 40 ms of computing
MAX_PAIRING_MESSAGE_BYTES: Final = 512  # ours have 200
MAX_DOORS: Final = 8  # devices with an open window that a newcomer looks at
DOORS_SETTLE_S: Final = 0.5  # after the first door was found: is there another one?
MAX_ROSTER: Final = 1024  # devices that a new secret is for; 34 bytes each in a control message
MAX_OLD_SECRETS: Final = 4  # a device that was off for longer has to join again
ROTATE_TIMEOUT_S: Final = 1.0  # for one device to promise, and again to take the new secret
PROMISE_S: Final = 5.0  # a promise to one rotation: longer than that rotation may take
OLD_LINK_GRACE_S: Final = 0.5  # until links below the old secret close: all have the new by then
REKEY_INTERVAL_S: Final = 1.0  # how often a device that was off is looked for

# --- discovery -----------------------------------------------------------------------------------
INTERFACE_POLL_S: Final = 2.0  # how soon a cable back in is announced; one file read per interface
MAX_HINTS_PER_CANDIDATE: Final = 4  # addresses tried of one announced device
RESOLVE_TIMEOUT_S: Final = 1.0  # the answer usually comes in the announcement itself
LOOK_AROUND_S: Final = 3.0  # of listening when a person asks why two devices do not meet

# --- who is here ---------------------------------------------------------------------------------
BEAT_INTERVAL_S: Final = 0.5  # 16 devices all-to-all: 480 small messages/s in the whole home
TICK_S: Final = 0.25  # how often silence is judged: half a beat
SUSPECT_AFTER_S: Final = 1.5  # three beats missed
DEAD_CONFIRMED_S: Final = 3.0  # six missed, and another device misses them too
DEAD_ALONE_S: Final = 3.7  # seven missed; with two devices nobody can confirm
LATE_TICK_S: Final = 0.25  # our own loop was this late: distrust ourselves a little
SLEPT_S: Final = 1.0  # our own tick was this late: we were stopped or asleep, accuse nobody
MAX_LOCAL_HEALTH: Final = 4  # timeouts x (1 + score)
HEALTH_DECAY_S: Final = 2.0  # a point of distrust in ourselves is forgiven after this long

# --- who is here, with many devices --------------------------------------------------------------
FEW_MEMBERS: Final = 16  # up to here everybody beats everybody; above, members are probed
FEW_AGAIN: Final = 12  # below this all-to-all again: no turning back and forth at the border
ELECTORS: Final = 15  # of many devices these beat each other and elect; odd, so that halves differ
NEIGHBOURS: Final = 6  # links that each device dials; it is dialled as often, so it holds about 12
PING_EVERY_S: Final = 1.0  # 12 neighbours each ping one of 12: a member is pinged once a second
PING_TIMEOUT_S: Final = 0.5  # for the answer; then others are asked to look
RELAY_TIMEOUT_S: Final = 1.0  # for those others: a dial, a handshake and an answer
RELAYS: Final = 3  # who look for a member that does not answer us: our own link may be the cause
SUSPICION_S: Final = 1.5  # x log10 of the members: rumours need that much longer to get around
SUSPICION_SPREAD: Final = 3.0  # an accusation that nobody confirms waits so many times longer
CONFIRMATIONS: Final = 3  # other accusers after whom it waits no longer than it must
GOSSIP_FANOUT: Final = 3  # neighbours told at a time: 1,000 devices in seven hops
GOSSIP_PAUSE_S: Final = 0.1  # between two tellings of a storm: what comes meanwhile goes together
TELLINGS: Final = 4  # x log10 of the members: how often each device passes a rumour on
MAX_RUMOURS: Final = 32  # in one message: 20 KB with the longest names
MAX_WAITING_RUMOURS: Final = 2048  # two for each member; the oldest is dropped first
MAX_PAGE: Final = 64  # members in one page of a view
SYNC_EVERY_S: Final = 30.0  # views are compared with a neighbour's: what gossip missed
SYNC_TIMEOUT_S: Final = 2.0  # for the next page; then another neighbour is asked
SWAP_EVERY_S: Final = 20.0  # one neighbour is given up for another, so that no corner is forgotten
KEEP_LINK_S: Final = 10.0  # a link that nothing needs is parked after this long
NEED_LINK_S: Final = 60.0  # one that a request went over: more of them are likely to follow
RETURN_EVERY_S: Final = 0.1  # per member: how often a device looks for one of the gone; 10 a second
# in the whole home, however many devices there are

# --- links ---------------------------------------------------------------------------------------
BACKOFF_MIN_S: Final = 0.25
BACKOFF_RECENT_S: Final = 1.0  # the longest wait for somebody we met in the last RECENT_S
BACKOFF_MAX_S: Final = 5.0
RECENT_S: Final = 120.0  # a cut that heals within it is one view again in <= 3 s
REDIAL_TIMEOUT_S: Final = 1.0  # for an address that worked before; a new one gets DIAL_TIMEOUT_S
DUPLICATE_WINDOW_S: Final = 3.0  # two links younger than this crossed; later, the newer one counts
RETIRE_GRACE_S: Final = 1.0  # a replaced link is still read this long: messages were under way
LEAVE_TIMEOUT_S: Final = 0.5  # to tell everybody that we go

# --- who leads -----------------------------------------------------------------------------------
JOIN_WINDOW_S: Final = 1.0  # a device that starts looks for a mesh before it stands alone
CANDIDATE_DELAY_MIN_S: Final = 0.3  # above the time in which all see the same death
CANDIDATE_DELAY_MAX_S: Final = 0.6
VOTE_TIMEOUT_S: Final = 0.5  # votes come back in milliseconds; then another try
