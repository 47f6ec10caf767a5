"""A browser offers: its channels come in band, its candidates one by one under `.local` names."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aegis_links.certificate import Certificate
from aegis_links.peer_link import PeerLink
from aegis_links.transfers import TransferPort
from aegis_protocol import PROTOCOL_VERSION
from aegis_protocol.channels import ChannelName
from aegis_protocol.control_link import JobRejected, SignalAnswer, SignalCandidate
from aegis_protocol.fingerprint import check_sdp
from agent_control import ControlPlane
from agent_stand import RunningAgent, an_agent
from headless_browser import Browser
from waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.requires("chromium")]

# As a page does it that knows docs/protocol.md alone.
PAGE = """(() => {
  const peer = new RTCPeerConnection({iceServers: []});
  const channels = {};
  const opened = ['espctl', 'source', 'pty', 'firmware', 'serial'].map(label => {
    const channel = channels[label] = peer.createDataChannel(label);
    channel.binaryType = 'arraybuffer';
    return new Promise(resolve => { channel.onopen = resolve; });
  });
  const candidates = [];
  peer.onicecandidate = ({candidate}) => {
    candidates.push(candidate ? candidate.candidate : '');
  };
  window.candidates = candidates;
  window.offer = async () => {
    await peer.setLocalDescription(await peer.createOffer());
    return peer.localDescription.sdp;
  };
  window.accept = async sdp => {
    const began = performance.now();
    await peer.setRemoteDescription({type: 'answer', sdp});
    await Promise.all(opened);
    return (performance.now() - began) / 1000;
  };
  window.request = (method, params) => new Promise(resolve => {
    channels.espctl.addEventListener('message', ({data}) => {
      const answer = JSON.parse(data);
      if (answer.id === method) { resolve(answer); }
    });
    channels.espctl.send(JSON.stringify({jsonrpc: '2.0', id: method, method, params}));
  });
  const frame = (kind, transfer, offset) => {
    const view = new DataView(new ArrayBuffer(13));
    view.setUint32(0, transfer); view.setUint8(4, kind); view.setBigUint64(5, BigInt(offset));
    return view.buffer;
  };
  const [DATA, END, RESUME, ACK, DONE] = [1, 2, 3, 4, 6];
  window.download = transfer => new Promise(resolve => {
    const parts = []; let held = 0, asked = 0;
    channels.firmware.onmessage = ({data}) => {
      const view = new DataView(data), kind = view.getUint8(4);
      if (Number(view.getBigUint64(5)) !== held) {
        if (asked !== held) { asked = held; channels.firmware.send(frame(RESUME, transfer, held)); }
        return;
      }
      if (kind === DATA) {
        parts.push(new Uint8Array(data, 13)); held += data.byteLength - 13;
        channels.firmware.send(frame(ACK, transfer, held));
      } else if (kind === END) {
        channels.firmware.send(frame(DONE, transfer, held));
        const digest = [...new Uint8Array(data, 13)].map(b => b.toString(16).padStart(2, '0'));
        const text = parts.map(part => String.fromCharCode(...part)).join('');
        resolve({digest: digest.join(''), base64: btoa(text)});
      }
    };
    channels.firmware.send(frame(RESUME, transfer, 0));
  });
})()"""


@pytest.fixture
async def browser(tmp: Path) -> AsyncIterator[Browser]:
    async with Browser.started(tmp) as started:
        await started.run(PAGE)
        yield started


async def candidates(browser: Browser) -> list[str]:
    """All of the browser's candidates; the last is empty."""
    found: list[str] = []
    async with asyncio.timeout(30):
        while "" not in found:
            found = await browser.run("candidates")
            await asyncio.sleep(0.02)
    return found


async def test_a_browser_meets_a_link_and_downloads_every_byte(browser: Browser) -> None:
    """The answer goes out before a candidate has come, and the names cost nothing."""
    data = os.urandom(4 * 1024 * 1024)
    certificate = Certificate.generate()
    offer = await browser.run("offer()")
    offered = re.sub(r"a=candidate:[^\n]*\n", "", offer)
    async with PeerLink.answering(
        offered,
        certificate,
        expected_fingerprint=check_sdp(offered),
        granted=frozenset(ChannelName),
    ) as link:
        opening = asyncio.create_task(browser.run(f"accept({json.dumps(link.answer_sdp)})"))
        trickled = await candidates(browser)
        assert any(".local " in candidate for candidate in trickled)
        began = time.monotonic()
        for candidate in trickled:
            link.add_remote_candidate(candidate, "0", 0)
        # Each name would cost a second if it were looked up.
        assert time.monotonic() - began < 0.5
        await link.opened(10)
        await opening
        async with TransferPort.over(link.channel(ChannelName.FIRMWARE)) as port:
            sending = asyncio.create_task(port.send_file(7, data))
            got = await browser.run("download(7)", within_s=60)
            sent = await sending
    digest = hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(base64.b64decode(got["base64"])).hexdigest() == digest
    assert got["digest"] == sent.sha256 == digest


async def test_a_browser_is_greeted_by_an_agent(browser: Browser, tmp: Path) -> None:
    async with ControlPlane.running() as control, an_agent(control, tmp) as agent:
        offer = await browser.run("offer()")
        claims = control.claims(agent.id, str(check_sdp(offer)))
        control.offer(claims, re.sub(r"a=candidate:[^\n]*\n", "", offer))
        answer = await _answered(agent, claims.jti)
        opening = asyncio.create_task(browser.run(f"accept({json.dumps(answer.sdp)})"))
        for candidate in await candidates(browser):
            control.send(
                SignalCandidate(
                    job_id=claims.job_id,
                    jti=claims.jti,
                    candidate=candidate,
                    sdpMid="0",
                    sdpMLineIndex=0,
                )
            )
        await opening
        words = {"protocol": PROTOCOL_VERSION, "client": "page/1"}
        greeted: dict[str, Any] = await browser.run(
            f"request('session.hello', {json.dumps(words)})"
        )
    assert greeted["result"]["protocol"] == PROTOCOL_VERSION


async def _answered(agent: RunningAgent, jti: str) -> SignalAnswer:
    def look() -> SignalAnswer | None:
        for frame in agent.control.frames:
            assert not isinstance(frame, JobRejected), frame
            if isinstance(frame, SignalAnswer) and frame.jti == jti:
                return frame
        return None

    return await until(look, within_s=10)
