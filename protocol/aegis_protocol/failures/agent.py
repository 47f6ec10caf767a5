"""What goes wrong between a client and the agent that it was given."""

from aegis_protocol.errors import AegisError


class AgentKeyChanged(AegisError):
    code = "agent.key_changed"
    remedy = (
        "Nothing was sent. If the agent was set up anew, compare its key on the machine "
        "(`aegis-agent identity`) and run `espctl agents trust NAME --key …`. If not, "
        "control may be forged."
    )


class AgentNotTrusted(AegisError):
    code = "agent.not_trusted"
    remedy = "Compare its key on the machine, then run `espctl agents trust NAME`."


class AgentSignatureWrong(AegisError):
    code = "agent.signature_wrong"
    remedy = "Nothing was sent. The answer did not come from the agent: control may be forged."


class AgentGone(AegisError):
    code = "agent.gone"
    remedy = (
        "Check that the machine is up and `aegis-agent` runs; `espctl agents` shows when it is "
        "back. A build that it had started is over; one that lost only its link goes on: "
        "`espctl attach`."
    )
    retryable = True


class AgentBusy(AegisError):
    code = "agent.busy"
    remedy = "All slots are taken: wait, or choose another agent."
    retryable = True


class SessionOver(AegisError):
    code = "session.over"
    remedy = "The job's time is over: ask for more with `--timeout`."


class SessionRevoked(AegisError):
    code = "session.revoked"
    remedy = "An operator took the permission back: ask them."


class SessionInvalid(AegisError):
    code = "session.hello_missing"
    remedy = "A session begins with `session.hello`."


class VersionMismatch(AegisError):
    code = "protocol.version_mismatch"
    remedy = "Install the same version of aegis-esp on both sides."
