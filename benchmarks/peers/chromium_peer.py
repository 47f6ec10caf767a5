"""
One side of a measurement: headless Chromium, which only receives.

Reads and writes the same lines of JSON as link_peer.py: `offer`, `accept`, `receive`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from typing import Any

from playwright.async_api import Page, async_playwright

# Chromium hides its addresses behind mDNS names otherwise, which nobody here resolves.
_FLAGS = ["--no-sandbox", "--disable-features=WebRtcHideLocalIpsWithMdns"]
_PAGE = """() => {
  const peer = new RTCPeerConnection({iceServers: []});
  const labels = ['espctl', 'source', 'pty', 'firmware', 'serial'];
  const channels = labels.map(label => peer.createDataChannel(label));
  channels.forEach(channel => { channel.binaryType = 'arraybuffer'; });
  // Data may come before it was asked for: time runs from the first of it.
  let got = 0, wanted = Infinity, done = null, began = 0;
  const check = () => {
    if (got >= wanted) {
      done((performance.now() - began) / 1000);
      got -= wanted; wanted = Infinity; began = 0;
    }
  };
  channels[3].onmessage = event => {
    began = began || performance.now();
    got += event.data.byteLength;
    check();
  };
  window.offer = async () => {
    await peer.setLocalDescription(await peer.createOffer());
    if (peer.iceGatheringState !== 'complete') {
      await new Promise(resolve => peer.addEventListener('icegatheringstatechange', () => {
        if (peer.iceGatheringState === 'complete') { resolve(); }
      }));
    }
    return peer.localDescription.sdp;
  };
  window.accept = async sdp => {
    const began = performance.now();
    await peer.setRemoteDescription({type: 'answer', sdp});
    await Promise.all(channels.map(channel => channel.readyState === 'open' ? null :
      new Promise(resolve => { channel.onopen = resolve; })));
    return (performance.now() - began) / 1000;
  };
  window.receive = size => new Promise(resolve => {
    wanted = size; done = resolve; began = began || performance.now();
    check();
  });
}"""


async def answer(page: Page, question: dict[str, Any]) -> dict[str, Any]:
    match question["do"]:
        case "offer":
            return {"sdp": await page.evaluate("offer()")}
        case "accept":
            return {"open_s": await page.evaluate("sdp => accept(sdp)", question["sdp"])}
        case "receive":
            seconds = await page.evaluate("size => receive(size)", question["size_bytes"])
            return {"seconds": seconds, "cpu_s": None}
    raise ValueError(question["do"])


async def main() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=_FLAGS
        )
        page = await browser.new_page()
        await page.evaluate(_PAGE)
        while line := await lines.readline():
            question = json.loads(line)
            found = await answer(page, question)
            sys.stdout.write(json.dumps({"id": question["id"], **found}) + "\n")
            sys.stdout.flush()
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
