"""What an agent says of a grant, an offer or a request that it refuses."""

from aegis_protocol.errors import AegisError


class GrantError(AegisError):
    code = "grant.refused"
    remedy = "Ask control for a new grant and connect again."
    retryable = True


class GrantInvalid(GrantError):
    code = "grant.invalid"
    remedy = "Use the grant exactly as control returned it; if you did, control may be forged."
    retryable = False


class GrantUnknownIssuer(GrantError):
    code = "grant.unknown_issuer"
    remedy = (
        "Control's signing key changed without the old one's signature. "
        "Enrol the agent again: `aegis-agent enroll`."
    )
    retryable = False


class GrantForeignAgent(GrantError):
    code = "grant.foreign_agent"
    remedy = "Control sent the grant to the wrong agent: look at control's log."
    retryable = False


class GrantNotYetValid(GrantError):
    code = "grant.not_yet_valid"
    remedy = "Set the clocks of control and agent (for example with systemd-timesyncd)."


class GrantExpired(GrantError):
    code = "grant.expired"
    remedy = (
        "Ask for a new grant. If new ones expire too, set the clocks of control and agent "
        "(for example with systemd-timesyncd)."
    )


class GrantUsed(GrantError):
    code = "grant.used"
    remedy = "A grant opens one connection: ask control for a new one."


class GrantStale(GrantError):
    code = "grant.stale"
    remedy = "The job or board was handed out anew since: ask control for a new grant."


class GrantRevoked(GrantError):
    code = "grant.revoked"
    remedy = "An operator took the permission back: ask them."
    retryable = False


class ActionNotGranted(AegisError):
    code = "action.not_granted"
    remedy = "Ask for a grant with this action, or use a key whose role has it."


class MethodUnknown(AegisError):
    code = "method.unknown"
    remedy = "Client and agent may be of different versions: compare `--version` on both sides."
