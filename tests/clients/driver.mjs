// Drives the JavaScript client by lines of JSON on standard input, and prints what it hears, one line of JSON each.
import { createInterface } from "node:readline";
import { CandledClient } from "../../clients/js/candled.js";

const [url, options, library] = process.argv.slice(2);
const WebSocket = library ? (await import(library)).WebSocket : globalThis.WebSocket;
const say = (name, event, facts) => console.log(JSON.stringify({ name, event, facts }));
const onState = (state) => say("", "state", [state]);
const client = new CandledClient(url, { WebSocket, onState, ...JSON.parse(options) });
const streams = new Map();

const listeners = (name) =>
  Object.fromEntries(
    ["onBars", "onBar", "onCorrection", "onFinal", "onStatus", "onMarkets"]
      .map((event) => [event, (...facts) => say(name, event, facts)])
      .concat([["onError", ({ message, code }) => say(name, "onError", [{ message, code }])]]),
  );

const actions = {
  subscribe: ({ name, request }) => streams.set(name, client.subscribe(request, listeners(name))),
  closedBars: ({ name, request }) => streams.set(name, client.closedBars(request, listeners(name))),
  unsubscribe: ({ name }) => streams.get(name).unsubscribe(),
  report: ({ name }) => {
    const { bars, bar, status, end, markets } = streams.get(name);
    say(name, "report", [{ bars, bar, status, end, markets }]);
  },
  older: async ({ name, limit }) => say(name, "older", [await streams.get(name).loadOlder(limit)]),
  history: async ({ request }) => say("", "history", [await client.history(request)]),
  close: () => client.close(),
};

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const command = JSON.parse(line);
    try {
      await actions[command.do](command);
    } catch ({ message, code }) {
      say(command.name ?? "", "failed", [{ message, code }]);
    }
  })
  .on("close", () => client.close());
