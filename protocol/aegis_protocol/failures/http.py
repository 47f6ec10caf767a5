"""What control answers when it refuses a request."""

from aegis_protocol.errors import AegisError


class BadRequest(AegisError):
    code = "request.invalid"
    remedy = "Correct the field that the message names; docs/protocol.md has examples."


class TooLarge(AegisError):
    code = "request.too_large"
    remedy = "Send less in one request."


class RequestTooSlow(AegisError):
    code = "request.too_slow"
    remedy = "Send the whole request at once; check the network between here and control."
    retryable = True


class KeyMissing(AegisError):
    code = "auth.key_missing"
    remedy = "Run `espctl login URL`, or set MCP_AUTH_SECRET to an API key."


class KeyWrong(AegisError):
    code = "auth.key_wrong"
    remedy = "Check the key; an operator makes a new one with `aegis-control keys create`."


class KeysDiffer(AegisError):
    code = "auth.keys_differ"
    remedy = "Send the key once: as `Authorization: Bearer` or as `X-API-Key`."


class TicketWrong(AegisError):
    code = "auth.ticket_wrong"
    remedy = "Ask for a new one with `POST /events/ticket`; a ticket serves once, within 30 s."


class RoleInsufficient(AegisError):
    code = "role.insufficient"
    remedy = "Ask an operator for a key with a higher role (`aegis-control keys create --role`)."


class ChannelNotAllowed(AegisError):
    code = "channel.not_allowed"
    remedy = "Leave the channel out, or have the operator add it to ALLOWED_CHANNELS."


class TargetNotAllowed(AegisError):
    code = "target.not_allowed"
    remedy = "This key may not build for that target: ask an operator for another key."


class BoardNotAllowed(AegisError):
    code = "board.not_allowed"
    remedy = "This key may not use that board: `espctl boards` shows the ones it may."


class AgentNotAllowed(AegisError):
    code = "agent.not_allowed"
    remedy = "This key may not use that agent: leave the agent open, or ask an operator."


class ActionNotAllowed(AegisError):
    code = "action.not_allowed"
    remedy = (
        "Ask for less, or have an operator widen the rule: `aegis-control policy check` says which."
    )


class PolicyDenied(AegisError):
    code = "policy.denied"
    remedy = "Ask the operator: `aegis-control policy show` has the rule."


class PolicyInvalid(AegisError):
    code = "policy.invalid"
    remedy = "Mend the line that the message names; `aegis-control policy validate` checks it."


class AgentNotFound(AegisError):
    code = "agent.not_found"
    remedy = "`espctl agents` lists the agents there are."


class JobNotFound(AegisError):
    code = "job.not_found"
    remedy = "`espctl jobs` lists your jobs."


class JobOver(AegisError):
    code = "job.over"
    remedy = "Start a new job; `espctl download` gets what the old one built."


class NotFound(AegisError):
    code = "path.not_found"
    remedy = "docs/protocol.md lists every endpoint."


class IdempotencyConflict(AegisError):
    code = "request.idempotency_conflict"
    remedy = "Use a new Idempotency-Key for a new request."


class RateLimited(AegisError):
    code = "request.rate_limited"
    remedy = "Wait for the time in Retry-After, then try again."
    retryable = True


class Unavailable(AegisError):
    code = "control.unavailable"
    remedy = "Control is starting, stopping or has lost its store: try again in a moment."
    retryable = True


class OriginRefused(AegisError):
    code = "origin.refused"
    remedy = "Add this exact origin to ALLOWED_ORIGINS on control."


class EnrollRefused(AegisError):
    code = "enroll.refused"
    remedy = "Make a new token with `aegis-control enroll-token create`; a token serves once."


class TokenNotFound(AegisError):
    code = "enroll.token_not_found"
    remedy = "`aegis-control enroll-token list` shows the tokens there are."


class AgentRevoked(AegisError):
    code = "agent.revoked"
    remedy = (
        "An operator took this machine's key back. After `aegis-control agents remove NAME` it may "
        "enrol again."
    )


class LinkRefused(AegisError):
    code = "link.refused"
    remedy = "Enrol this agent: `aegis-agent enroll`."


class LinkSuperseded(AegisError):
    code = "link.superseded"
    remedy = "Another process uses this agent's key: run one agent per state directory."
    retryable = True


class AgentKeyCloned(AegisError):
    code = "agent.key_cloned"
    remedy = (
        "This agent's state directory was copied. On one of the two machines stop the agent, "
        "delete agent.key and enrollment.json there and enrol it afresh; then run "
        "`aegis-control reset-agent NAME`."
    )
    retryable = True


class AgentOffline(AegisError):
    code = "agent.offline"
    remedy = "The agent has no link to control right now: wait, or choose another agent."
    retryable = True


class PriorityNotAllowed(AegisError):
    code = "priority.not_allowed"
    remedy = "Ask for no more than the message says; an operator gives more by the policy file."


class AgentQuarantined(AegisError):
    code = "agent.quarantined"
    remedy = "Mend what the reason names, then `aegis-control reset-agent NAME`."


class ControlUnreachable(AegisError):
    code = "control.unreachable"
    remedy = "Check the URL, that `aegis-control serve` runs there, and the network between."
    retryable = True


class ControlAnswerInvalid(AegisError):
    code = "control.answer_invalid"
    remedy = "The server at this URL does not speak Aegis' protocol: check the URL and its version."


class JobTimedOut(AegisError):
    code = "job.wait_expired"
    remedy = "See the reasons; wait longer with `--wait`, or make an agent fit."
    retryable = True


class JobCanceled(AegisError):
    code = "job.canceled"
    remedy = "Somebody canceled this job: `espctl jobs` shows it; start a new one."


class TargetUnknown(AegisError):
    code = "target.unknown"
    remedy = "Name a chip such as esp32 or esp32p4; the facts list the ones there are."


class MethodNotAllowed(AegisError):
    code = "request.method_not_allowed"
    remedy = "docs/protocol.md lists every endpoint with its method."


class RotationRefused(AegisError):
    code = "issuer.rotation_refused"
    remedy = "Set AEGIS_SEAL_KEY to one value on every replica, restart them, and rotate then."


class GrantNotFound(AegisError):
    code = "grant.not_found"
    remedy = "Give the grant's jti: the log, the audit and the job's events have it."


class KeyNotFound(AegisError):
    code = "key.not_found"
    remedy = "`aegis-control keys list` shows the keys there are."


class EnrollNameTaken(AegisError):
    code = "enroll.name_taken"
    remedy = (
        "Enrol under another name (AEGIS_AGENT_NAME). If the agent of that name was set up anew, "
        "an operator first removes the old one: `aegis-control agents remove NAME`."
    )
