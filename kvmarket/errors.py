"""Every error that kvmarket raises, as one tree.

::

    KVMarketError
    ├── MisuseError (also ValueError)     the call is wrong; nothing was launched, nothing was lost
    │   ├── LayoutError                   tensors that do not form a paged cache, or caches that do not fit each other
    │   ├── SlotError                     block ids out of range, repeated, too few, too many, or of other blocks
    │   ├── TokenError                    tokens that are not a flat sequence of 32-bit integers, or too many
    │   ├── FingerprintError              facts that cannot be hashed
    │   └── ClosedError                   a call on a market that was closed, or in a fork of its process
    ├── RegistryError                     the control plane cannot be reached, or refused a request
    │   ├── AddressError                  the socket of the market cannot be made or is not private
    │   │   └── WrongAddressError         no market can be there until the address, or what lies there, is changed
    │   ├── VersionError                  the service speaks another protocol version
    │   ├── MessageError                  a message that does not decode or breaks a bound
    │   │   ├── MissingBlockError         an offer that continues a block which is not offered
    │   │   └── NotJoinedError            a message of an engine that is not a member, or no longer
    │   └── RefusedError                  the service refused to let this engine join
    ├── TransportError                    the memory of a pool cannot be shared or mapped
    │   ├── SharedMemoryError             no room, or a shared file that is not what its owner said
    │   ├── NamespaceError                owner and reader do not share a PID or IPC namespace
    │   └── PeerAccessError               the GPUs have no peer access
    └── PlatformError                     this machine cannot keep the ordering rules of generations

``fetch`` raises none of these because a peer changed its mind or died: it returns how many leading blocks are valid.
"""

from __future__ import annotations


class KVMarketError(Exception):
    """The root of all errors of kvmarket."""


class MisuseError(KVMarketError, ValueError):
    """The call is wrong. Raised before anything is launched; the market is as it was."""


class LayoutError(MisuseError):
    """Tensors that do not form a paged cache, or two caches that do not fit each other."""


class SlotError(MisuseError):
    """Block ids out of range, repeated, too few, too many, or of slots that do not hold the blocks to be published."""


class TokenError(MisuseError):
    """Tokens that are not a flat sequence of integers that fit 32 bits, or more than can be sent."""


class FingerprintError(MisuseError):
    """Facts that cannot be hashed into a fingerprint."""


class ClosedError(MisuseError):
    """A call on a market that was closed, or in a fork of its process."""


class RegistryError(KVMarketError):
    """The control plane cannot be reached, or refused a request."""


class AddressError(RegistryError):
    """The socket of the market cannot be made, or its directory is not private to the user."""


class WrongAddressError(AddressError):
    """No market can be at this address until somebody changes it, or removes what lies there: no waiting helps."""


class VersionError(RegistryError):
    """The service of this market speaks another version of the protocol."""


class MessageError(RegistryError):
    """A message that does not decode, or that breaks a bound."""


class MissingBlockError(MessageError):
    """An offer that continues a block which is not offered; the engine sends all its live offers again."""


class NotJoinedError(MessageError):
    """A message of an engine that is not a member, because its connection broke; the engine joins again."""


class RefusedError(RegistryError):
    """The service refused to let this engine join; the message says why."""


class TransportError(KVMarketError):
    """The memory of a pool cannot be shared with, or mapped by, another process."""


class SharedMemoryError(TransportError):
    """No room in shared memory, or a shared file that is not what its owner said."""


class NamespaceError(TransportError):
    """Owner and reader do not share the PID or IPC namespace that sharing memory needs."""


class PeerAccessError(TransportError):
    """Owner and reader are on GPUs without peer access to each other."""


class PlatformError(KVMarketError):
    """This machine's processor does not order memory accesses as generations need it (see `pool.generations`)."""
