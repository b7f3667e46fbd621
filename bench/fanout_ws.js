// Node's `ws` for bench.fanout: the same control as fanout_servers.py, but for the floor, which needs the sockets.
//   node fanout_ws.js PORT
const { WebSocketServer, Sender } = require("ws");

const EPOCH = 1000000000000000n;
const VARIANT = 6n;
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: 4096, perMessageDeflate: false });

function text() {
  const stamp = (process.hrtime.bigint() % EPOCH) / 100n * 100n + VARIANT + EPOCH;
  return '{"type":"update","symbol":"BTC/USDT","interval":"1m","bar":{"time":"2025-10-06T00:00:00.000Z","open":67234.5,' +
    `"high":67340,"low":67200,"close":67310.25,"volume":${stamp},"quoteVolume":9772345.67}}`;
}

// The frame is built once and written to each socket: the fastest way that `ws` has.
function send() {
  const list = Sender.frame(Buffer.from(text()), { fin: true, rsv1: false, opcode: 1, mask: false, readOnly: true });
  const frame = Buffer.concat(list);
  for (const client of server.clients) client._socket.write(frame);
}

function timed(what) {
  if (what === "count") return server.clients.size;
  const began = process.cpuUsage();
  if (what === "send") send();
  const took = process.cpuUsage(began);
  return took.user + took.system;
}

server.on("listening", () => console.log(JSON.stringify("ready")));
let rest = "";
process.stdin.on("data", (data) => {
  const lines = (rest + data).split("\n");
  rest = lines.pop();
  for (const line of lines) console.log(JSON.stringify(timed(line.trim())));
});
process.stdin.on("end", () => process.exit(0));
