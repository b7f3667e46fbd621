/**
 * Live candles from a candled server: any number of streams over one WebSocket, through lost connections.
 *
 *     const client = new CandledClient("ws://localhost:7000/ws");
 *     const stream = client.subscribe({ symbol: "BTC/USDT", interval: "5m", bars: 300 }, {
 *       onBars: (bars) => chart.setData(bars),   // all bars, at first and when more than the newest bar changed
 *       onBar: (bar) => chart.update(bar),       // the newest bar changed, or the next one opened
 *       onStatus: ({ state }) => label.textContent = state,
 *     });
 *
 * The bars in memory are always those that a new subscription would get. You only need this file, connection.js,
 * streams.js and series.js. It works in browsers, and in Node with the built-in WebSocket or the one of the package `ws`.
 */
import { ServerConnection } from "./connection.js";
import { MarketStream, MarketSubscription, PatternStream, PatternSubscription } from "./streams.js";

const DEFAULT_BARS = 100;
const FIELDS = ["final", "seq", "rev", "src"];
const ASK_AGAIN_MS = 20000;
const RETRY_REQUEST_MS = 1000;

/** A refused request or subscription. `code` is the server's, or `closed`, `timeout` or `unsupported`. */
export class CandledError extends Error {
  constructor(message, code = null, temporary = false) {
    super(message);
    this.name = "CandledError";
    this.code = code;
    this.temporary = temporary;
  }
}

export class CandledClient {
  #connection;
  #options;
  #form; // the optional fields and the number format of requests
  #streams = new Set();
  #patterns = new Set();
  #requests = new Map();
  #nextId = 1;
  #state = { state: "idle" };
  #watch = null;

  /** The client connects with the first subscription or request, and stays connected until `close()`. */
  constructor(url, options = {}) {
    const { keep = 20000, historyWithinMs = 30000, defaultExchange = null, numbers, onState = () => {}, ...connection } = options;
    this.#options = { keep, historyWithinMs, onState };
    this.#form = numbers === undefined ? { fields: FIELDS } : { fields: FIELDS, numbers };
    this.defaultExchange = defaultExchange;
    this.#connection = new ServerConnection(url, {
      ...connection,
      onOpen: () => this.#opened(),
      onMessage: (message) => this.#onMessage(message),
      onState: (state, details) => this.#setState({ state, ...details }),
    });
  }

  /** `{ state }`: idle, connecting, open, lost (with `retryAt` in epoch ms), refused (with `message`) or closed. */
  get state() {
    return this.#state;
  }

  /** Follow one interval of one market. Your listeners are called from the next microtask on. */
  subscribe({ symbol, interval, exchange = null, bars = DEFAULT_BARS }, listeners = {}) {
    this.#open();
    const make = (topic) => new MarketStream(this, topic, bars, this.#options.keep);
    const stream = this.#follow(this.#streams, { symbol, interval, exchange }, make);
    if (bars > stream.wanted) {
      stream.wanted = bars;
      stream.reset();
      this.#ask(stream);
    }
    return new MarketSubscription(stream, listeners);
  }

  /**
   * Follow the closed bars of all markets that a pattern selects, such as `*` or `!*UP/USDT`.
   *
   * `onBar(symbol, bar)` is called once for each bar, in the order of time of each market. Bars that close while the
   * connection is lost are not delivered afterwards: read them with `history`.
   */
  closedBars({ pattern = "*", interval = "1m", exchange = null } = {}, listeners = {}) {
    this.#open();
    const make = (topic) => new PatternStream(this, topic);
    const stream = this.#follow(this.#patterns, { symbol: pattern, interval, exchange }, make);
    return new PatternSubscription(stream, listeners);
  }

  /** Return `{ bars, end }`: a page before `before` (ISO text, epoch ms or Date; default now), oldest first. */
  async history({ symbol, interval, exchange = null, before, limit = 500 }) {
    const request = { type: "history", symbol, interval, limit, ...this.#form };
    if (exchange !== null && exchange !== this.defaultExchange) request.exchange = exchange;
    if (before !== undefined) request.before = before instanceof Date ? before.toISOString() : before;
    const { bars, end } = await this.#request(request);
    return { bars, end };
  }

  /** End all streams and requests, and close the socket. */
  close() {
    this.#connection.close();
    clearInterval(this.#watch);
    for (const id of [...this.#requests.keys()]) this.#resolveRequest(id, new CandledError("the client was closed", "closed"));
    this.#streams.clear();
    this.#patterns.clear();
  }

  /** Unsubscribe a stream whose last subscription has ended. */
  leave(stream) {
    if (!this.#streams.delete(stream) && !this.#patterns.delete(stream)) return;
    this.#connection.send({ type: "unsubscribe", ...stream.topic });
  }

  #open() {
    if (this.#state.state === "closed") throw new CandledError("the client was closed", "closed");
    if (this.#state.state === "idle") {
      this.#connection.open();
      this.#watch = setInterval(() => this.#askAgain(), ASK_AGAIN_MS / 4);
    }
  }

  get #all() {
    return [...this.#streams, ...this.#patterns];
  }

  /** Return the stream of a topic, after making and requesting it if there is none. */
  #follow(streams, { symbol, interval, exchange }, make) {
    const named = exchange === this.defaultExchange ? null : exchange;
    let stream = [...streams].find((one) => one.isOn(symbol, interval, named));
    if (!stream) {
      stream = make({ symbol, interval, exchange: named });
      streams.add(stream);
      this.#ask(stream);
    }
    return stream;
  }

  #opened() {
    for (const stream of this.#all) {
      stream.refusal = null;
      this.#ask(stream);
    }
    for (const [id, { message }] of this.#requests) this.#connection.send({ ...message, id });
  }

  #ask(stream) {
    stream.askedId = this.#nextId++;
    stream.askedAt = Date.now();
    stream.isAcknowledged = false;
    stream.isInitialized = false;
    this.#connection.send({ type: "subscribe", id: stream.askedId, ...stream.topic, ...this.#form, ...stream.request });
    stream.notifyStatus();
  }

  /** Repeat subscriptions that were never answered: they were lost, for instance to the server's limit on messages. */
  #askAgain() {
    const before = Date.now() - ASK_AGAIN_MS;
    for (const stream of this.#all) {
      if (this.#connection.state === "open" && !stream.isAnswered && stream.askedAt < before) this.#ask(stream);
    }
  }

  #request(message) {
    this.#open();
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const late = () => this.#resolveRequest(id, new CandledError("the server did not answer in time", "timeout", true));
      const timer = setTimeout(late, this.#options.historyWithinMs);
      this.#requests.set(id, { message, resolve, reject, timer });
      this.#connection.send({ ...message, id });
    });
  }

  #resolveRequest(id, answer) {
    const request = this.#requests.get(id);
    if (!request) return;
    this.#requests.delete(id);
    clearTimeout(request.timer);
    if (answer instanceof Error) request.reject(answer);
    else request.resolve(answer);
  }

  #onMessage(message) {
    if (message.pattern !== undefined) {
      this.#onPatternMessage(message);
      return;
    }
    switch (message.type) {
      case "initial":
      case "resumed":
      case "update":
      case "correction":
        this.#streamOf(message)?.take(message);
        break;
      case "subscribed":
        this.#acknowledged(message);
        break;
      case "status":
        for (const stream of this.#streams) if (stream.isAbout(message, this.defaultExchange)) stream.setFeedState(message);
        break;
      case "history":
        this.#resolveRequest(message.id, message);
        break;
      case "error":
        this.#refused(message);
        break;
      case "bye":
        this.#connection.expectEnd(message.reconnectAfterMs);
        break;
    }
  }

  #onPatternMessage(message) {
    const named = { ...message, symbol: message.pattern };
    for (const stream of this.#patterns) if (stream.isAbout(named, this.defaultExchange)) stream.take(message);
  }

  #acknowledged({ id, exchange }) {
    const stream = this.#all.find((one) => one.askedId === id);
    if (!stream) return;
    stream.isAcknowledged = true;
    if (exchange === undefined && stream.topic.exchange) this.defaultExchange = stream.topic.exchange;
    stream.notifyStatus();
  }

  /** Return a message's stream. Messages name the exchange only if it is not the default, which may be learned here. */
  #streamOf(message) {
    const about = [...this.#streams].filter(
      ({ topic }) => topic.symbol === message.symbol && topic.interval === message.interval,
    );
    const exact = about.find((stream) => stream.isAbout(message, this.defaultExchange));
    if (exact || message.exchange !== undefined || about.length !== 1 || this.defaultExchange !== null) return exact;
    this.defaultExchange = about[0].topic.exchange;
    return about[0];
  }

  #refused({ id, message, code = null, temporary = false }) {
    if (this.#requests.has(id)) {
      if (temporary) setTimeout(() => this.#repeat(id), RETRY_REQUEST_MS);
      else this.#resolveRequest(id, new CandledError(message, code));
      return;
    }
    if (id === undefined && /^Unknown message type: history/.test(message)) {
      for (const waiting of [...this.#requests.keys()]) this.#resolveRequest(waiting, new CandledError(message, "unsupported"));
      return;
    }
    const stream = this.#all.find((one) => (id === undefined ? one.isMeantBy(message) : one.askedId === id));
    stream?.refuse(new CandledError(message, code, temporary));
  }

  #repeat(id) {
    const request = this.#requests.get(id);
    if (request) this.#connection.send({ ...request.message, id });
  }

  #setState(state) {
    this.#state = state;
    for (const stream of this.#all) stream.onConnectionState();
    this.#options.onState(state);
  }
}
