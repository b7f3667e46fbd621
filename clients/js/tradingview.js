/**
 * A streaming datafeed for TradingView's Charting Library: history and live bars over one WebSocket.
 *
 *     import { CandledDatafeed } from "http://localhost:7000/clients/tradingview.js";
 *     const datafeed = new CandledDatafeed("http://localhost:7000", { onReset: () => widget.activeChart().resetData() });
 *     const widget = new TradingView.widget({ datafeed, symbol: "BITGET:BTCUSDT", interval: "5", ... });
 *
 * The symbols are fetched once over HTTP, from /api/symbols and /udf/config. The chart's cache is reset only when bars
 * in it have changed: `onReset` is then called after the library's own `onResetCacheNeededCallback`.
 */
import { CandledClient } from "./candled.js";
import { priceDecimals } from "./numbers.js";

const MOST_BARS = 1000; // per answer
const RESET_AFTER_MS = 500; // repairing an outage sends many corrections: one reset is enough for all of them
const UNIT_MS = { m: 60000, h: 3600000, D: 86400000, W: 604800000 };

export class CandledDatafeed {
  #base;
  #client;
  #onReset;
  #resetAfterMs;
  #catalogue = null;
  #feeds = new Map();
  #newest = new Map();

  /** `base` is the server's HTTP address. The options are `client`, `onReset`, and those of `CandledClient`. */
  constructor(base, { client = null, onReset = () => {}, resetAfterMs = RESET_AFTER_MS, ...options } = {}) {
    this.#base = new URL(String(base).replace(/\/?$/, "/"), globalThis.location?.href);
    const socket = new URL("ws", this.#base);
    socket.protocol = this.#base.protocol === "https:" ? "wss:" : "ws:";
    this.#client = client ?? new CandledClient(socket.href, options);
    this.#onReset = onReset;
    this.#resetAfterMs = resetAfterMs;
  }

  /** Close the socket. The library has no call for this, so call it yourself. */
  close() {
    for (const guid of [...this.#feeds.keys()]) this.unsubscribeBars(guid);
    this.#client.close();
  }

  onReady(callback) {
    this.#load().then(
      ({ configuration }) => callback(configuration),
      () => setTimeout(() => this.onReady(callback), 2000),
    );
  }

  async searchSymbols(userInput, exchange, symbolType, onResult) {
    const { markets } = await this.#load().catch(() => ({ markets: [] }));
    const wanted = userInput.trim().toUpperCase();
    const found = markets.filter(
      (market) =>
        [market.ticker, market.symbol, nameOf(market)].some((name) => name.toUpperCase().includes(wanted)) &&
        (!exchange || exchange === market.exchange.toUpperCase()),
    );
    const rank = (market) => (nameOf(market).toUpperCase().startsWith(wanted) ? 0 : 1);
    found.sort((one, other) => rank(one) - rank(other));
    onResult(found.map((market) => ({ ...named(market), symbol: nameOf(market), type: "crypto" })));
  }

  async resolveSymbol(symbolName, onResolve, onError) {
    try {
      const { markets, configuration } = await this.#load();
      const market = findMarket(markets, symbolName);
      if (market) onResolve(await this.#describe(market, configuration.supported_resolutions));
      else onError("unknown_symbol");
    } catch (error) {
      onError(error.message);
    }
  }

  /** Load `countBack` bars before `to`, across any gaps; without it, the bars from `from` on. */
  async getBars(symbolInfo, resolution, { from, to, countBack, firstDataRequest }, onResult, onError) {
    try {
      const topic = await this.#topic(symbolInfo, resolution);
      const bars = [];
      let before = to * 1000;
      let end = false;
      const isEnough = () => end || (countBack ? bars.length >= countBack : bars[0]?.time <= from * 1000);
      while (!isEnough()) {
        const limit = Math.min(MOST_BARS, countBack ? countBack - bars.length : MOST_BARS);
        const page = await this.#client.history({ ...topic, before, limit });
        bars.unshift(...page.bars.map(tick));
        end = page.end || !page.bars.length;
        before = bars[0]?.time;
      }
      const wanted = countBack ? bars : bars.filter(({ time }) => time >= from * 1000);
      const key = keyOf(symbolInfo, resolution);
      if (firstDataRequest) this.#newest.set(key, wanted.at(-1)?.time ?? 0);
      onResult(wanted, { noData: !wanted.length && end });
    } catch (error) {
      onError(error.message);
    }
  }

  async subscribeBars(symbolInfo, resolution, onTick, listenerGuid, onResetCacheNeededCallback) {
    this.unsubscribeBars(listenerGuid);
    const since = this.#newest.get(keyOf(symbolInfo, resolution)) ?? 0;
    const reset = () => {
      onResetCacheNeededCallback();
      this.#onReset(listenerGuid);
    };
    const feed = new Feed(since, onTick, reset, this.#resetAfterMs);
    this.#feeds.set(listenerGuid, feed); // before the first await, because `unsubscribeBars` may be called during it
    const topic = await this.#topic(symbolInfo, resolution);
    const missed = Math.ceil((Date.now() - since) / intervalMs(topic.interval)) + 2;
    feed.begin(this.#client, { ...topic, bars: since ? Math.min(Math.max(missed, 2), MOST_BARS) : 2 });
  }

  /** End the subscription with this id only. The library calls it long after the next `subscribeBars`. */
  unsubscribeBars(listenerGuid) {
    this.#feeds.get(listenerGuid)?.end();
    this.#feeds.delete(listenerGuid);
  }

  async getServerTime(callback) {
    callback(Number(await (await this.#get("udf/time")).text()));
  }

  async #topic({ ticker }, resolution) {
    const { markets } = await this.#load();
    const { symbol, exchange } = findMarket(markets, ticker);
    return { symbol, exchange, interval: intervalOf(resolution) };
  }

  async #describe(market, resolutions) {
    let decimals = market.priceDecimals;
    if (decimals === null) {
      const { symbol, exchange } = market;
      const interval = intervalOf(resolutions[0]);
      decimals = priceDecimals((await this.#client.history({ symbol, exchange, interval, limit: 100 })).bars);
    }
    return {
      ...named(market),
      type: "crypto",
      session: "24x7",
      timezone: "Etc/UTC",
      listed_exchange: market.exchange.toUpperCase(),
      minmov: 1,
      pricescale: 10 ** decimals,
      has_intraday: resolutions.some((name) => /^\d+$/.test(name)),
      has_daily: resolutions.includes("1D"),
      has_weekly_and_monthly: resolutions.includes("1W"),
      intraday_multipliers: resolutions.filter((name) => /^\d+$/.test(name)),
      supported_resolutions: resolutions,
      volume_precision: market.volumeDecimals ?? 8,
      data_status: "streaming",
      format: "price",
    };
  }

  /** Fetch the markets and the configuration once. After a failure, the next call tries again. */
  #load() {
    this.#catalogue ??= this.#fetchCatalogue().catch((error) => {
      this.#catalogue = null;
      throw error;
    });
    return this.#catalogue;
  }

  async #fetchCatalogue() {
    const [symbols, configuration] = await Promise.all(["api/symbols", "udf/config"].map((path) => this.#get(path)));
    const { symbols: markets } = await symbols.json();
    const offered = await configuration.json();
    this.#client.defaultExchange ??= markets[0]?.exchange ?? null;
    const { exchanges, symbols_types, supported_resolutions } = offered;
    return { markets, configuration: { exchanges, symbols_types, supported_resolutions, supports_time: true } };
  }

  async #get(path) {
    const answer = await fetch(new URL(path, this.#base));
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
    return answer;
  }
}

/** One `subscribeBars`: ticks that never run backwards, and a reset when older bars have changed. */
class Feed {
  #through;
  #onTick;
  #reset;
  #resetAfterMs;
  #subscription = null;
  #resetting = null;
  #isOver = false;

  constructor(since, onTick, reset, resetAfterMs) {
    this.#through = since;
    this.#onTick = onTick;
    this.#reset = reset;
    this.#resetAfterMs = resetAfterMs;
  }

  begin(client, request) {
    if (this.#isOver) return;
    this.#subscription = client.subscribe(request, {
      onBars: (bars, change) => this.#changed(bars, change),
      onBar: (bar) => this.#tick(bar),
      onCorrection: () => this.#resetSoon(),
    });
  }

  end() {
    this.#isOver = true;
    this.#subscription?.unsubscribe();
    clearTimeout(this.#resetting);
  }

  #changed(bars, { reason, changed, isFirst }) {
    const isSeamless = reason === "initial" && isFirst && reaches(bars, this.#through);
    const isOnlyNew = reason === "resumed" && changed.every(({ time }) => Date.parse(time) >= this.#through);
    if (!isSeamless && !isOnlyNew && reason !== "history") this.#resetSoon();
    for (const bar of changed) this.#tick(bar);
  }

  #tick(bar) {
    const { time, ...values } = tick(bar);
    if (time < this.#through) return;
    this.#through = time;
    this.#onTick({ time, ...values });
  }

  #resetSoon() {
    clearTimeout(this.#resetting);
    this.#resetting = setTimeout(this.#reset, this.#resetAfterMs);
  }
}

/** Return true if the bars connect to those of the chart. An empty chart needs no earlier bars. */
function reaches(bars, through) {
  return through === 0 || (bars.length > 0 && Date.parse(bars[0].time) <= through);
}

function tick(bar) {
  const [open, high, low, close, volume] = [bar.open, bar.high, bar.low, bar.close, bar.volume].map(Number);
  return { time: Date.parse(bar.time), open, high, low, close, volume };
}

function keyOf({ ticker }, resolution) {
  return `${ticker} ${resolution}`;
}

function named(market) {
  const exchange = market.exchange.toUpperCase();
  const { ticker, symbol } = market;
  return { name: nameOf(market), full_name: ticker, ticker, description: symbol, exchange };
}

/** Return a ticker without its exchange: `BTCUSDT`, or `BTCUSDT.P` for a perpetual contract. */
function nameOf({ ticker }) {
  return ticker.slice(ticker.indexOf(":") + 1);
}

/** Return the market of a ticker such as `BITGET:BTCUSDT`, in any case, also without the exchange or as candled's symbol. */
function findMarket(markets, name) {
  const wanted = name.toUpperCase();
  const spellings = (market) => [
    market.ticker,
    `${market.exchange}:${market.symbol}`,
    market.symbol,
    nameOf(market),
  ];
  return (
    markets.find(({ ticker }) => ticker === name) ??
    markets.find((market) => spellings(market).some((spelling) => spelling.toUpperCase() === wanted))
  );
}

/** Return candled's interval for a resolution: the number of minutes, `D`, `1D`, `1W`. */
function intervalOf(resolution) {
  const minutes = Number(resolution);
  if (Number.isNaN(minutes)) return /^\d/.test(resolution) ? resolution : `1${resolution}`;
  return minutes % 60 ? `${minutes}m` : `${minutes / 60}h`;
}

function intervalMs(interval) {
  return parseInt(interval, 10) * UNIT_MS[interval.at(-1)];
}
