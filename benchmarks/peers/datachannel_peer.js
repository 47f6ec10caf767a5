// One side of a measurement: libdatachannel, by node-datachannel, in a process of its own.
// Reads and writes the same lines of JSON as link_peer.py.
'use strict';

const path = require('path');
const readline = require('readline');
const library = path.join(__dirname, '..', '..', 'build', 'bench', 'node_modules', 'node-datachannel');
const { PeerConnection } = require(library);

const PIECE_BYTES = 16384;
const HIGH_BYTES = 1024 * 1024;
const LABELS = ['espctl', 'source', 'pty', 'firmware', 'serial'];

const channels = {};
const opened = {};
// Data may come before it was asked for: time runs from the first of it.
let got = 0;
let began = null;
let wanted = null;
let keyArrived = null;
let echoing = false;
let peer;

function say(words) {
  process.stdout.write(JSON.stringify(words) + '\n');
}

function cpuS() {
  const used = process.cpuUsage();
  return (used.user + used.system) / 1e6;
}

function check() {
  if (wanted === null || got < wanted.size) return;
  const seconds = Number(process.hrtime.bigint() - began.at) / 1e9;
  wanted.resolve({ seconds, cpu_s: cpuS() - began.cpu });
  got -= wanted.size;
  began = wanted = null;
}

function adopt(channel) {
  const label = channel.getLabel();
  channels[label] = channel;
  opened[label] = new Promise((resolve) => {
    if (channel.isOpen()) resolve();
    else channel.onOpen(resolve);
  });
  channel.onMessage((message) => {
    if (label === 'firmware') {
      began = began || { at: process.hrtime.bigint(), cpu: cpuS() };
      got += message.length;
      check();
    }
    if (label === 'pty') {
      if (echoing) channel.sendMessageBinary(Buffer.from(message));
      else if (keyArrived) keyArrived();
    }
  });
}

async function allOpened() {
  while (!LABELS.every((label) => opened[label])) await new Promise((r) => setTimeout(r, 2));
  await Promise.all(LABELS.map((label) => opened[label]));
}

function description(make) {
  peer = new PeerConnection('bench', { iceServers: [], maxMessageSize: 65536 });
  peer.onDataChannel(adopt);
  return new Promise((resolve) => {
    peer.onGatheringStateChange((state) => {
      if (state === 'complete') resolve({ sdp: peer.localDescription().sdp });
    });
    make();
  });
}

const verbs = {
  offer: () => description(() => LABELS.forEach((label) => adopt(peer.createDataChannel(label)))),
  answer: ({ sdp }) => description(() => peer.setRemoteDescription(sdp, 'offer')),
  accept: async ({ sdp }) => {
    const began = process.hrtime.bigint();
    peer.setRemoteDescription(sdp, 'answer');
    await allOpened();
    return { open_s: Number(process.hrtime.bigint() - began) / 1e9 };
  },
  opened: async () => {
    await allOpened();
    return {};
  },
  send: ({ size_bytes: size }) =>
    new Promise((resolve) => {
      const piece = Buffer.alloc(PIECE_BYTES);
      const channel = channels.firmware;
      const began = cpuS();
      let left = size;
      const push = () => {
        while (left > 0 && channel.bufferedAmount() < HIGH_BYTES) {
          channel.sendMessageBinary(piece);
          left -= PIECE_BYTES;
        }
        if (left <= 0 && channel.bufferedAmount() === 0) {
          channel.onBufferedAmountLow(() => {});
          clearInterval(timer);
          resolve({ cpu_s: cpuS() - began });
        }
      };
      channel.setBufferedAmountLowThreshold(HIGH_BYTES / 2);
      channel.onBufferedAmountLow(push);
      const timer = setInterval(push, 5);
      push();
    }),
  receive: ({ size_bytes: size }) =>
    new Promise((resolve) => {
      wanted = { size, resolve };
      began = began || { at: process.hrtime.bigint(), cpu: cpuS() };
      check();
    }),
  keys: async ({ count, pause_s: pause }) => {
    const waits = [];
    for (let n = 0; n < count; n++) {
      const began = process.hrtime.bigint();
      await new Promise((resolve) => {
        keyArrived = resolve;
        channels.pty.sendMessageBinary(Buffer.from('k'));
      });
      waits.push(Number(process.hrtime.bigint() - began) / 1e9);
      await new Promise((r) => setTimeout(r, pause * 1000));
    }
    return { waits_s: waits };
  },
  echo: async () => {
    echoing = true;
    return {};
  },
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  const { id, do: verb, ...rest } = JSON.parse(line);
  say({ id, ...(await verbs[verb](rest)) });
}).on('close', () => process.exit(0));
