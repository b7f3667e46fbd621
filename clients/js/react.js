/**
 * A React hook over the client; React 18 or newer.
 *
 *     const { bars, bar, status } = useCandles({ url: "ws://localhost:7000/ws", symbol: "BTC/USDT", interval: "5m" });
 *
 * All hooks with the same `url` share one WebSocket. To use your own client, pass `client` instead of `url`.
 */
import { useCallback, useRef, useSyncExternalStore } from "react";
import { CandledClient } from "./candled.js";

const LINGER_MS = 3000; // a component that changes its market returns the client and borrows it again immediately

const NOTHING = Object.freeze({
  bars: Object.freeze([]),
  bar: null,
  status: Object.freeze({ state: "connecting" }),
  end: false,
  loadOlder: async () => ({ added: 0, end: false }),
});

/** Return `{ bars, bar, status, end, loadOlder }` of one market and interval. A change returns a new object. */
export function useCandles({ url, client = null, symbol, interval, exchange = null, bars = 100 }) {
  const latest = useRef({ of: null, value: NOTHING });
  const subscribe = useCallback(
    (changed) => {
      const lent = client === null ? borrow(url) : { client, giveBack: () => {} };
      const read = () => {
        const { bars, bar, status, end } = subscription;
        latest.current = { of: subscribe, value: { bars, bar, status, end, loadOlder } };
        changed();
      };
      const listeners = { onBars: read, onBar: read, onCorrection: read, onStatus: read };
      const subscription = lent.client.subscribe({ symbol, interval, exchange, bars }, listeners);
      const loadOlder = (limit) => subscription.loadOlder(limit);
      return () => {
        subscription.unsubscribe();
        lent.giveBack();
      };
    },
    [url, client, symbol, interval, exchange, bars],
  );
  // After a change of market there are no bars until the first answer, instead of those of the previous market.
  const read = () => (latest.current.of === subscribe ? latest.current.value : NOTHING);
  return useSyncExternalStore(subscribe, read, () => NOTHING);
}

const shared = new Map();

/** Return the client shared by all hooks of a URL. It is closed some seconds after the last one returned it. */
function borrow(url) {
  let entry = shared.get(url);
  if (!entry) {
    entry = { client: new CandledClient(url), users: 0, timer: null };
    shared.set(url, entry);
  }
  entry.users += 1;
  clearTimeout(entry.timer);
  const giveBack = () => {
    entry.users -= 1;
    if (entry.users) return;
    entry.timer = setTimeout(() => {
      shared.delete(url);
      entry.client.close();
    }, LINGER_MS);
  };
  return { client: entry.client, giveBack };
}
