// binance-api-node watches an interval; prints two answers, or the error, one line of JSON each.
import { createRequire } from "node:module";

const [library, port, interval] = process.argv.slice(2);
const { default: Binance } = createRequire(`${library}/`)("binance-api-node");
const client = Binance({ wsBase: `ws://127.0.0.1:${port}/ws` });
const begun = Date.now();
let count = 0;
const take = ({ k, error }) => {
  if (error) console.log(JSON.stringify({ refused: error.msg, ms: Date.now() - begun }));
  else console.log(JSON.stringify({ time: k.t, close: Number(k.c) }));
  count += 1;
  if (error || count === 2) process.exit(0);
};
client.ws.candles("BTCUSDT", interval, take, false); // as they come: its own form has no place for an error
