"""
A faster way through DTLS and SCTP, as subclasses of aiortc's own transports, one per connection.

    guard            whether this is the aiortc that the rest was written for
    datagrams        bursts of datagrams out of a socket and into it
    record_layer     many packets into DTLS records and back
    dtls             RTCDtlsTransport with both
    packets          SCTP packets as bytes
    early_setup      the association agreed on before the first packet
    congestion       how much may be on its way
    sharing          how many associations share this process
    turns            whose turn it is among them
    reordering       how late is lost
    gap_blocks       which TSNs arrived, as ranges
    inbound_stream   fragments to messages
    outgoing         a chunk that is sent
    recovering       what comes back of what was sent, and what is sent again
    sending          the half of an association that sends
    receiving        the half that receives
    sctp             RTCSctpTransport with both

What is rare (set-up, shut-down, stream resets) stays aiortc's code.
"""
