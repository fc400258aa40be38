"""What a short code is used for, and nothing else: SPAKE2, confirmation of both sides, a seal.

    newcomer -> member   its SPAKE2 message
    member   -> newcomer its SPAKE2 message
    newcomer -> member   its confirmation       HMAC over everything said, under a key of its own
    member   -> newcomer its confirmation       the same, under another key

Two who typed different codes, or between whom somebody swapped the TLS keys, come to different
keys without noticing; so nothing is sealed or opened before the other's confirmation was right.
"""

from __future__ import annotations

import hmac
from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError
from spake2.ed25519_basic import NotOnCurve

from mesh.errors import PairingFailed
from mesh.ids import PeerId

SPAKE_BYTES = 33
CONFIRMATION_BYTES = 32
SEAL_BYTES = 16
_CONTEXT = b"potluck pairing 1"
_NONCE = bytes(12)  # each key seals one message


class Role(StrEnum):
    NEWCOMER = "newcomer"
    MEMBER = "member"

    @property
    def other(self) -> Role:
        return Role.MEMBER if self is Role.NEWCOMER else Role.NEWCOMER


class Exchange:
    """One side of one try. `newcomer` and `member` are the hashes of the keys that TLS proved, as
    this side saw them.
    """

    def __init__(self, role: Role, code: str, *, newcomer: PeerId, member: PeerId) -> None:
        self._role = role
        ids = tuple(_CONTEXT + bytes.fromhex(peer) for peer in (newcomer, member))
        kind = SPAKE2_A if role is Role.NEWCOMER else SPAKE2_B
        self._side = kind(code.encode(), idA=ids[0], idB=ids[1])
        self._said: dict[Role, bytes] = {role: self._side.start()}
        self._key: bytes | None = None
        self._confirmed = False

    @property
    def message(self) -> bytes:
        """This side's SPAKE2 message, SPAKE_BYTES."""
        return self._said[self._role]

    def take(self, message: bytes) -> None:
        """The other side's; raises PairingFailed for what is none, or is our own sent back."""
        if len(message) != SPAKE_BYTES:
            raise PairingFailed(f"a pairing message has {SPAKE_BYTES} bytes; {len(message)} came")
        try:
            self._key = self._side.finish(message)
        except (SPAKEError, NotOnCurve, ValueError) as error:
            what = str(error) or type(error).__name__
            raise PairingFailed(f"that is no pairing message of the other side: {what}") from None
        self._said[self._role.other] = message

    @property
    def confirmation(self) -> bytes:
        """Proves to the other side that this one has the same key; CONFIRMATION_BYTES."""
        return self._confirmation_of(self._role)

    def confirm(self, confirmation: bytes) -> None:
        """Raises PairingFailed unless it proves that the other side has the same key."""
        if not hmac.compare_digest(confirmation, self._confirmation_of(self._role.other)):
            raise PairingFailed("the codes differ, or somebody stands between the two devices")
        self._confirmed = True

    def seal(self, plain: bytes) -> bytes:
        """For the other side's eyes; once per side, and only after `confirm`."""
        assert self._confirmed, "nothing is sealed for somebody who has proved nothing"
        return ChaCha20Poly1305(self._derive(f"{self._role} seals")).encrypt(
            _NONCE, plain, self._transcript
        )

    def unseal(self, sealed: bytes) -> bytes:
        """What the other side sealed; raises PairingFailed if it was changed."""
        assert self._confirmed, "nothing is opened from somebody who has proved nothing"
        key = self._derive(f"{self._role.other} seals")
        try:
            return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, self._transcript)
        except InvalidTag:
            raise PairingFailed("what came was changed on its way; try again") from None

    @property
    def _transcript(self) -> bytes:
        """The keys of both ends and the code are in the SPAKE2 key already."""
        return _CONTEXT + self._said[Role.NEWCOMER] + self._said[Role.MEMBER]

    def _confirmation_of(self, role: Role) -> bytes:
        return hmac.digest(self._derive(f"{role} confirms"), self._transcript, "sha256")

    def _derive(self, label: str) -> bytes:
        assert self._key is not None, "the other side's message comes first"
        return HKDF(SHA256(), 32, salt=_CONTEXT, info=label.encode()).derive(self._key)
