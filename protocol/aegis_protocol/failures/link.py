"""
What can go wrong between two peers, from the session description to the last byte.

    sdp.*        a session description that is refused before a packet is sent
    link.*       the connection as a whole
    channel.*    one channel of it
    frame.*      bytes on a channel that mean nothing
    message.*    a message that no peer may send
    rpc.*        a request on `espctl`
    transfer.*   a file on `source` or `firmware`
"""

from __future__ import annotations

from aegis_protocol.errors import AegisError


class LinkError(AegisError):
    """Anything about a peer connection; catch it to catch them all."""

    code = "link.error"
    remedy = "Run the command again; `espctl doctor` checks the way to the agent."


class SdpInvalid(LinkError):
    code = "sdp.invalid"
    remedy = (
        "A session description has exactly one `m=application` section (UDP/DTLS/SCTP), one"
        " sha-256 fingerprint, and at most 16 KiB of ASCII text."
    )


class FingerprintAmbiguous(LinkError):
    code = "sdp.fingerprint_ambiguous"
    remedy = "Offer one certificate only: one fingerprint value, sha-256."


class FingerprintMismatch(LinkError):
    code = "sdp.fingerprint_mismatch"
    remedy = (
        "The peer is not the one that was announced: nothing was sent to it. Ask for a new grant;"
        " if it happens again, somebody may stand between you and the agent."
    )


class TooManyCandidates(LinkError):
    code = "link.too_many_candidates"
    remedy = "A peer may send at most 32 candidates for one connection."


class NoCandidates(LinkError):
    code = "link.no_candidates"
    remedy = (
        "This machine has no network address besides loopback, and a peer connection needs one:"
        " connect it to a network, or give it one with `ip link add aegis0 type dummy`,"
        " `ip addr add 192.0.2.1/32 dev aegis0` and `ip link set aegis0 up`."
    )


class RelayUnavailable(LinkError):
    """A TURN server is configured and gave no relayed address; the children say why."""

    code = "link.relay_unavailable"
    remedy = (
        "The TURN server gave no relay address: look at its log, its quotas and its range of"
        " relay ports."
    )
    retryable = True


class RelayRefused(RelayUnavailable):
    code = "link.relay_refused"
    remedy = (
        "Give control and the TURN server the same secret (AEGIS_TURN_SECRET and coturn's"
        " static-auth-secret), and check that their clocks agree."
    )
    retryable = False


class RelayExpired(RelayUnavailable):
    code = "link.relay_expired"
    remedy = (
        "The credentials last as long as the job and 90 s: ask for a new job, or set the clocks of"
        " this machine, control and the TURN server."
    )


class RelayUnreachable(RelayUnavailable):
    code = "link.relay_unreachable"
    remedy = (
        "Start the TURN server, and open its ports for this machine; where UDP is blocked, name it"
        " by `turns:` or `?transport=tcp` at control as well."
    )


class LinkNotOpened(LinkError):
    code = "link.not_opened"
    remedy = (
        "No packet came through in time. If both machines are behind NAT, configure a TURN server"
        " at control; otherwise allow UDP between them."
    )
    retryable = True


class LinkUnreachable(LinkError):
    code = "link.unreachable"
    remedy = (
        "No pair of addresses works between the two machines. Configure a TURN server at control,"
        " or allow UDP between them."
    )
    retryable = True


class HandshakeFailed(LinkError):
    code = "link.handshake_failed"
    remedy = "The peers met, but the encrypted handshake failed: compare `--version` on both sides."
    retryable = True


class PeerGone(LinkError):
    code = "link.peer_gone"
    remedy = (
        "The peer stopped answering: its process died, its machine slept, or the network changed."
        " Connect again; what was built is kept on the agent."
    )
    retryable = True


class LinkClosed(LinkError):
    code = "link.closed"
    remedy = "The connection was closed. Connect again if more is to be done."
    retryable = True


class LinkFlooded(LinkError):
    code = "link.flooded"
    remedy = "The peer sent more than anybody asked for and was cut off: compare the versions."


class LinkBroken(LinkError):
    code = "link.protocol_broken"
    remedy = "The peer breaks the protocol: compare `--version` on both sides."


class ChannelNotGranted(LinkError):
    code = "channel.not_granted"
    remedy = "Ask for a grant with this channel in `required_channels`."


class ChannelClosed(LinkError):
    code = "channel.closed"
    remedy = "The channel was closed by one of the peers. Connect again to use it."


class FrameError(LinkError):
    code = "frame.invalid"
    remedy = "The peer sent bytes that are no frame: compare `--version` on both sides."


class MessageTooLarge(LinkError):
    code = "message.too_large"
    remedy = "A message has at most 65,536 bytes: send what is larger as a transfer."


class RpcParseError(LinkError):
    code = "rpc.parse_error"
    remedy = "A message on `espctl` is one JSON object."


class RpcRequestInvalid(LinkError):
    code = "rpc.request_invalid"
    remedy = "Send a JSON-RPC 2.0 request: `jsonrpc`, `id`, `method`, and `params` as an object."


class RpcParamsInvalid(LinkError):
    code = "rpc.params_invalid"
    remedy = "The message names the parameter; docs/protocol.md has every method's parameters."


class RpcTimedOut(LinkError):
    code = "rpc.timed_out"
    remedy = "The peer is alive but did not answer in time: try again, or give it more time."
    retryable = True


class RpcBusy(LinkError):
    code = "rpc.busy"
    remedy = "Too many requests are under way on this connection: wait for some to end."
    retryable = True


class RpcResultTooLarge(LinkError):
    code = "rpc.result_too_large"
    remedy = "The result does not fit a message: ask for less, or fetch it as a transfer."


class TransferError(LinkError):
    code = "transfer.failed"
    remedy = "Run the command again: a transfer goes on where it stopped."


class TransferAborted(TransferError):
    code = "transfer.aborted"
    remedy = "The peer gave the transfer up. Run the command again: it goes on where it stopped."
    retryable = True


class DigestMismatch(TransferError):
    code = "transfer.digest_mismatch"
    remedy = "What arrived is not what was announced, and was thrown away. Transfer it again."
    retryable = True


class SizeMismatch(TransferError):
    code = "transfer.size_mismatch"
    remedy = "The peer sent more or fewer bytes than it announced. Transfer it again."
    retryable = True


class SentFileChanged(TransferError):
    code = "transfer.source_changed"
    remedy = "The file changed while it was being sent. Run the command again when it is at rest."
    retryable = True


class TransferStalled(TransferError):
    code = "transfer.stalled"
    remedy = "Nothing moved for too long although the peer is alive. Run the command again."
    retryable = True


class TransferNotWritten(TransferError):
    code = "transfer.not_written"
    remedy = "Free space on the disk, or allow writing to the folder. Then run the command again."


class TransferRefused(TransferError):
    code = "transfer.refused"
    remedy = "Wait for other transfers to end, and use a new transfer id for each."
    retryable = True
