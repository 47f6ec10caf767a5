"""What an agent claims of its jobs reaches control signed, and in spite of a link that was down."""

from __future__ import annotations

from pathlib import Path

from aegis_agent.claims import MAX_KEPT, Claims
from aegis_agent.identity import Identity
from aegis_protocol.control_link import TO_CONTROL, Facts, ToControl
from aegis_protocol.signing import unb64, verified


class Line:
    """Where frames go while it is `up`."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[Facts] = []

    def send(self, frame: ToControl) -> bool:
        if self.up:
            arrived = TO_CONTROL.validate_json(frame.model_dump_json())
            assert isinstance(arrived, Facts)
            self.sent.append(arrived)
        return self.up


def claim(number: int) -> Facts:
    return Facts(job_id=f"j-{number}", facts={"board": "é", "mac": None, "n": [1, 2.5]})


def test_a_claim_is_signed_over_what_arrives(tmp: Path) -> None:
    line, identity = Line(), Identity.open(tmp)
    assert Claims(identity, line.send).tell(claim(1))
    (sent,) = line.sent
    assert sent.signature is not None and sent.at is not None
    assert verified(identity.public_key, unb64(sent.signature), sent.statement())
    other = sent.model_copy(update={"job_id": "j-2"})
    assert not verified(identity.public_key, unb64(sent.signature), other.statement())


def test_claims_made_while_the_link_is_down_are_sent_when_it_is_up(tmp: Path) -> None:
    line = Line()
    claims = Claims(Identity.open(tmp), line.send)
    line.up = False
    assert not claims.tell(claim(1))
    assert not claims.tell(claim(2))
    line.up = True
    assert claims.send_kept()
    assert claims.tell(claim(3))
    assert claims.send_kept()
    assert [sent.job_id for sent in line.sent] == ["j-1", "j-2", "j-3"]


def test_of_claims_that_wait_the_newest_are_kept(tmp: Path) -> None:
    line = Line()
    claims = Claims(Identity.open(tmp), line.send)
    line.up = False
    for number in range(MAX_KEPT + 3):
        claims.tell(claim(number))
    line.up = True
    claims.send_kept()
    assert [sent.job_id for sent in line.sent] == [f"j-{n}" for n in range(3, MAX_KEPT + 3)]
