"""Every error a person can meet, as one tree.

PotluckError
  BadId                 an id, address or join code that cannot be read
  ConfigError           the state folder, a setting or a port is not usable as asked
  MeshError
    ProtocolError       a peer sent something that no version of ours would send
      VersionMismatch   a peer speaks another version of the protocol
      NotFinite         a peer sent numbers that are none: it computes wrongly
    LinkError           a connection could not be made, or broke
      DialRefused       the host answered that nobody listens there
      DialTimeout       nobody answered in time
      NotOfThisMesh     the TLS handshake failed: another mesh, or no mesh at all
      LinkClosed        the link was closed while in use
    RequestFailed       a peer answered a request with a refusal, in its own words
    PairingFailed       a short code did not let a device in; the text says why
    RotationRefused     the mesh's secret cannot be changed from here, or not now
    NoLeader            the mesh has not agreed on a leader
    StaleEpoch          something of an older epoch or plan; refused by the receiver
      PlanReplaced      a plan is over because another one of its model is in force
  PlanError
    DoesNotFit          no set of devices can hold the model
    NoRoom              the model fits the devices, but not beside those that are in use
  ModelError
    BadModelFile        truncated, corrupt, or not a GGUF file
    UnsupportedModel    a tensor type or an architecture we do not have
    ModelNotFound       no device, or not this one, has the model
    WrongModel          the model is not for what was asked of it
    ModelInUse          the model cannot be removed or replaced while it runs
    WeightsMissing      pieces of a model that no device here can give now
      NowhereHere       pieces of a model that no device here has
    DiskFull            the disk took no more; what is there is kept
    PullFailed          a model could not be brought from where it was to come from
  SessionError
    BadPrompt           the prompt holds what no model can read
    PromptTooLong       the prompt does not fit the context
    Busy                every place for a conversation is taken
    GenerationFailed    the generation could not be continued

Each text says what was expected, what came, and what a person can do.
"""


class PotluckError(Exception):
    """The root: everything we raise on purpose. `exit_code` is the command's exit status."""

    exit_code = 1


class BadId(PotluckError, ValueError):
    """An id, address or join code that cannot be read."""

    exit_code = 2


class ConfigError(PotluckError):
    """The state folder, a setting or a port is not usable as asked."""

    exit_code = 2


class MeshError(PotluckError):
    """Trouble between devices."""


class ProtocolError(MeshError):
    """A peer sent something that no version of ours would send."""


class VersionMismatch(ProtocolError):
    """A peer speaks another version of the protocol."""


class NotFinite(ProtocolError):
    """A peer sent numbers that are none: it computes wrongly, or its weights are damaged."""


class LinkError(MeshError):
    """A connection could not be made, or broke."""


class DialRefused(LinkError):
    """The host answered that nobody listens there."""


class DialTimeout(LinkError):
    """Nobody answered in time."""


class NotOfThisMesh(LinkError):
    """The TLS handshake failed: the other side is of another mesh, or of none."""


class OwnIdentity(LinkError):
    """Who answered has this very device's key: it is this device itself, or a copy of it."""


class LinkClosed(LinkError):
    """The link was closed while in use."""


class RequestFailed(MeshError):
    """A peer answered a request with a refusal, in its own words."""


class PairingFailed(MeshError):
    """A short code did not let a device in: wrong, too late, too often, or somebody in between."""


class RotationRefused(MeshError):
    """The mesh's secret cannot be changed from here, or not now; the text says what would help."""


class NoLeader(MeshError):
    """The mesh has not agreed on a leader."""


class StaleEpoch(MeshError):
    """Something of an older epoch or plan; refused by the receiver."""


class PlanReplaced(StaleEpoch):
    """A plan is over because another one of its model is in force."""


class PlanError(PotluckError):
    """No plan can be made or installed."""


class DoesNotFit(PlanError):
    """No set of devices can hold the model; the text says which memory is short, by how much."""


class NoRoom(PlanError):
    """The model fits the devices, but not beside those in use; the text says who uses them."""


class ModelError(PotluckError):
    """Trouble with a model file."""


class BadModelFile(ModelError):
    """Truncated, corrupt, or not a GGUF file."""


class UnsupportedModel(ModelError):
    """A tensor type or an architecture we do not have."""


class ModelNotFound(ModelError):
    """No device, or not this one, has the model."""


class WrongModel(ModelError):
    """The model is not for what was asked of it; the text says what it is for."""


class ModelInUse(ModelError):
    """The model cannot be removed or replaced while it runs, or is being fetched."""


class WeightsMissing(ModelError):
    """Pieces of a model that no device here can give now; they may come back with a device."""


class NowhereHere(WeightsMissing):
    """Pieces of a model that no device here has, by their numbers."""

    def __init__(self, text: str, pieces: frozenset[int] = frozenset()) -> None:
        super().__init__(text)
        self.pieces = pieces


class DiskFull(ModelError):
    """The disk took no more; what has come so far is kept, and goes on from there."""


class PullFailed(ModelError):
    """A model could not be brought from where it was to come from."""


class SessionError(PotluckError):
    """Trouble with one conversation."""


class BadPrompt(SessionError):
    """The prompt holds what no model can read."""


class NoTemplate(BadPrompt):
    """A chat with a base model, which has no form for one."""


class PromptTooLong(SessionError):
    """The prompt does not fit the context."""


class Busy(SessionError):
    """Every place for a conversation is taken."""


class GenerationFailed(SessionError):
    """The generation could not be continued."""
