/** The markets, intervals and views, and the address that names one of each. */

const facts = JSON.parse(document.getElementById("candled").textContent);

export const { version, defaultExchange, markets, intervals } = facts;
export const VIEWS = ["chart", "coverage"];

const severalExchanges = new Set(markets.map(({ exchange }) => exchange)).size > 1;

/** Return a market's name in the address. The exchange is left out if it is the default. */
export function marketName({ exchange, symbol }) {
  return exchange === defaultExchange ? symbol : `${exchange}:${symbol}`;
}

/** Return a market's exchange if there are several, else nothing. */
export function exchangeLabel({ exchange }) {
  return severalExchanges ? exchange : "";
}

/** Return whether a market's candles are not those of the market at present. */
export function isSimulated({ exchange }) {
  return facts.simulated.includes(exchange);
}

/**
 * Return the choice in the address: `#BTC/USDT/5m`, `#exchange:BTC/USDT/5m` or `#BTC/USDT/5m/coverage`.
 *
 * `unknown` is a market that is not served.
 */
export function readHash() {
  const parts = decoded(location.hash.slice(1)).split("/");
  const view = VIEWS.includes(parts.at(-1)) ? parts.pop() : "chart";
  const interval = intervals.includes(parts.at(-1)) ? parts.pop() : null;
  const name = parts.join("/");
  const market = markets.find((candidate) => marketName(candidate) === name) ?? null;
  return {
    market: market ?? markets[0],
    interval: interval ?? intervals[0],
    view,
    unknown: market || !name ? null : name,
  };
}

export function writeHash({ market, interval, view }) {
  const more = view === "chart" ? "" : `/${view}`;
  history.replaceState(null, "", `#${marketName(market)}/${interval}${more}`);
}

/** Return the markets that match all words of a text. Those whose symbol begins with the first word come first. */
export function findMarkets(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const names = ({ exchange, symbol }) =>
    [symbol, symbol.replace(/[/:]/g, ""), `${exchange}:${symbol}`].map((name) => name.toLowerCase());
  const found = markets.filter((market) => words.every((word) => names(market).some((name) => name.includes(word))));
  const rank = ({ symbol }) => (words.length && symbol.toLowerCase().startsWith(words[0]) ? 0 : 1);
  return found.sort((one, other) => rank(one) - rank(other));
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a mistyped hash
  }
}
