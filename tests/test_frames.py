"""The binary frames: each survives the wire, and nothing malformed gets through."""

from __future__ import annotations

import random
import struct

import pytest
from aegis_protocol.channels import MAX_ERROR_BYTES, MAX_MESSAGE_BYTES, PAYLOAD_BYTES
from aegis_protocol.errors import ErrorBody
from aegis_protocol.failures.link import (
    FingerprintAmbiguous,
    FingerprintMismatch,
    FrameError,
    SdpInvalid,
)
from aegis_protocol.fingerprint import MAX_SDP_BYTES, Fingerprint, check_sdp
from aegis_protocol.frames import (
    StreamAck,
    StreamEnd,
    StreamFrame,
    StreamGap,
    StreamInput,
    StreamOutput,
    StreamResize,
    StreamResume,
    TransferAbort,
    TransferAck,
    TransferData,
    TransferDone,
    TransferEnd,
    TransferFrame,
    TransferResume,
    decode_stream_frame,
    decode_transfer_frame,
)

ERROR = ErrorBody(code="transfer.refused", message="No room.", remedy="Make room.")
STREAM_FRAMES: list[StreamFrame] = [
    StreamOutput(7, 2**40, b"\x1b[31mred\r\n"),
    StreamOutput(7, 0, b""),
    StreamInput(7, b"help\r"),
    StreamResize(2**32 - 1, 132, 43),
    StreamResume(0, 2**64 - 1),
    StreamGap(7, 10, 2**63),
    StreamEnd(7, 12),
    StreamAck(7, 11),
]
TRANSFER_FRAMES: list[TransferFrame] = [
    TransferData(9, 2**33, bytes(PAYLOAD_BYTES)),
    TransferEnd(9, 2**33, bytes(range(32))),
    TransferResume(9, 5),
    TransferAck(9, 6),
    TransferAbort(9, 0, ERROR),
    TransferDone(9, 2**64 - 1),
]


@pytest.mark.parametrize("frame", STREAM_FRAMES, ids=lambda f: type(f).__name__)
def test_a_stream_frame_survives_the_wire(frame: StreamFrame) -> None:
    assert decode_stream_frame(frame.encode()) == frame


@pytest.mark.parametrize("frame", TRANSFER_FRAMES, ids=lambda f: type(f).__name__)
def test_a_transfer_frame_survives_the_wire(frame: TransferFrame) -> None:
    assert decode_transfer_frame(frame.encode()) == frame


def test_the_bytes_on_the_wire_are_the_documented_ones() -> None:
    assert StreamOutput(1, 2, b"hi").encode().hex() == "0000000101" + "0000000000000002" + "6869"
    assert StreamResize(1, 80, 24).encode().hex() == "0000000103" + "0050" + "0018"
    assert TransferData(3, 4, b"x").encode().hex() == "0000000301" + "0000000000000004" + "78"


@pytest.mark.parametrize("frame", STREAM_FRAMES, ids=lambda f: type(f).__name__)
def test_a_stream_frame_cut_anywhere_in_its_numbers_is_refused(frame: StreamFrame) -> None:
    whole = frame.encode()
    numbers = len(whole) - len(getattr(frame, "data", b""))
    for length in range(numbers):
        with pytest.raises(FrameError):
            decode_stream_frame(whole[:length])


@pytest.mark.parametrize("frame", TRANSFER_FRAMES, ids=lambda f: type(f).__name__)
def test_a_transfer_frame_cut_anywhere_in_its_head_is_refused(frame: TransferFrame) -> None:
    whole = frame.encode()
    for length in range(
        14 if isinstance(frame, TransferData | TransferEnd | TransferAbort) else 13
    ):
        with pytest.raises(FrameError):
            decode_transfer_frame(whole[:length])


def test_random_bytes_are_a_frame_that_encodes_to_them_or_a_frame_error() -> None:
    chance = random.Random(2718)  # noqa: S311 - reproducible, no secret
    for _ in range(20_000):
        data = chance.randbytes(chance.randrange(48))
        if len(data) > 4 and chance.random() < 0.8:
            data = data[:4] + bytes([chance.randrange(9)]) + data[5:]
        for decode in (decode_stream_frame, decode_transfer_frame):
            try:
                frame = decode(data)
            except FrameError as error:
                assert error.body().code == "frame.invalid"
            else:
                assert frame.encode() == data


@pytest.mark.parametrize(
    "message",
    [
        "text",
        b"",
        struct.pack(">IB", 1, 0),
        struct.pack(">IB", 1, 99),
        struct.pack(">IBQ", 1, 4, 5) + b"more",
        struct.pack(">IBHH", 1, 3, 0, 24),
        struct.pack(">IBQQ", 1, 5, 9, 9),
        struct.pack(">IBQ", 1, 1, 2**64 - 1) + b"beyond",
        bytes([0, 0, 0, 1, 2]) + bytes(MAX_MESSAGE_BYTES),
    ],
)
def test_a_malformed_stream_frame_is_refused(message: bytes | str) -> None:
    with pytest.raises(FrameError):
        decode_stream_frame(message)


@pytest.mark.parametrize(
    "message",
    [
        "text",
        struct.pack(">IBQ", 1, 0, 0),
        struct.pack(">IBQ", 1, 7, 0),
        struct.pack(">IBQ", 1, 1, 0),
        struct.pack(">IBQ", 1, 1, 2**64 - 1) + b"beyond",
        struct.pack(">IBQ", 1, 2, 0) + bytes(31),
        struct.pack(">IBQ", 1, 3, 0) + b"x",
        struct.pack(">IBQ", 1, 5, 0) + b"{}",
        struct.pack(">IBQ", 1, 5, 0) + b" " * (MAX_ERROR_BYTES + 1),
        struct.pack(">IBQ", 1, 1, 0) + bytes(MAX_MESSAGE_BYTES),
    ],
)
def test_a_malformed_transfer_frame_is_refused(message: bytes | str) -> None:
    with pytest.raises(FrameError):
        decode_transfer_frame(message)


@pytest.mark.parametrize(
    "frame",
    [
        StreamOutput(2**32, 0, b""),
        StreamOutput(1, 2**64 - 1, b"x"),
        StreamOutput(1, 0, bytes(MAX_MESSAGE_BYTES)),
        StreamResize(1, 0, 24),
        StreamGap(1, 5, 5),
        StreamAck(1, -1),
        TransferData(1, 0, b""),
        TransferEnd(1, 0, b"short"),
        TransferAck(-1, 0),
    ],
)
def test_a_frame_that_no_peer_would_accept_is_never_encoded(
    frame: StreamFrame | TransferFrame,
) -> None:
    with pytest.raises(FrameError):
        frame.encode()


def test_an_error_too_large_for_an_abort_frame_keeps_its_code() -> None:
    large = ERROR.model_copy(update={"message": "é" * 4096, "facts": {"log": "x" * 9000}})
    frame = decode_transfer_frame(TransferAbort(1, 0, large).encode())
    assert isinstance(frame, TransferAbort)
    assert frame.error.code == ERROR.code
    assert frame.error.message.startswith("éé")


DIGEST = bytes(range(32))
LINE = "a=fingerprint:sha-256 " + DIGEST.hex(":").upper()


def sdp(*extra: str, media: str = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel") -> str:
    return "\r\n".join(["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", media, *extra, ""])


def test_a_fingerprint_reads_what_it_writes() -> None:
    fingerprint = Fingerprint(DIGEST)
    assert str(fingerprint).startswith("sha-256:00:01:02")
    assert Fingerprint.parse(str(fingerprint)) == fingerprint
    assert Fingerprint.parse(str(fingerprint).lower()) == fingerprint
    assert Fingerprint.parse("sha-256 " + fingerprint.pairs) == fingerprint


@pytest.mark.parametrize(
    "text", ["", "sha-256", "sha-256:", "sha-1:" + "AB:" * 20, "sha-256:AB:CD"]
)
def test_a_fingerprint_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(SdpInvalid):
        Fingerprint.parse(text)


def test_a_good_description_gives_its_fingerprint_even_if_it_stands_twice() -> None:
    assert check_sdp(sdp(LINE)) == Fingerprint(DIGEST)
    assert check_sdp(sdp(LINE, LINE.lower().replace("a=fingerprint", "a=fingerprint"))) == (
        Fingerprint(DIGEST)
    )


def test_two_fingerprints_are_refused() -> None:
    other = LINE.replace("00:01", "FF:01")
    with pytest.raises(FingerprintAmbiguous):
        check_sdp(sdp(LINE, other))
    with pytest.raises(FingerprintAmbiguous):
        check_sdp(sdp(LINE, "a=fingerprint:sha-512 " + bytes(64).hex(":")))


@pytest.mark.parametrize(
    "description",
    [
        "",
        "hello",
        sdp(),
        sdp("a=fingerprint:sha-1 " + bytes(20).hex(":")),
        sdp(LINE, "m=application 9 UDP/DTLS/SCTP webrtc-datachannel"),
        sdp(LINE, "m=audio 9 UDP/TLS/RTP/SAVPF 111"),
        sdp(LINE, media="m=video 9 UDP/TLS/RTP/SAVPF 96"),
        sdp(LINE, media="m=application 9 TCP/DTLS/SCTP webrtc-datachannel"),
        sdp(LINE, media="s=no media"),
        sdp(LINE, "a=x:\x0bm=application"),
        sdp(LINE, "a=x:\u2028" + LINE),
        sdp(LINE, "a=x:" + "y" * MAX_SDP_BYTES),
    ],
)
def test_a_description_that_is_not_one_data_channel_section_is_refused(description: str) -> None:
    with pytest.raises(SdpInvalid):
        check_sdp(description)


def test_another_fingerprint_than_the_expected_one_is_named() -> None:
    with pytest.raises(FingerprintMismatch) as caught:
        Fingerprint(DIGEST).expect(Fingerprint(bytes(32)))
    assert caught.value.facts["found"].startswith("sha-256:00:00")
