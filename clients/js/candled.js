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
 * The bars in memory are always those that a new subscription would get. You only need this file, connection.js and
 * series.js. It works in browsers, and in Node with the built-in WebSocket or the one of the package `ws`.
 */
import { ServerConnection } from "./connection.js";
import { Series } from "./series.js";

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
    const named = exchange === this.defaultExchange ? null : exchange;
    let stream = [...this.#streams].find((one) => one.isOn(symbol, interval, named));
    if (!stream) {
      stream = new Stream(this, { symbol, interval, exchange: named }, bars, this.#options.keep);
      this.#streams.add(stream);
      this.#ask(stream);
    } else if (bars > stream.wanted) {
      stream.wanted = bars;
      stream.reset();
      this.#ask(stream);
    }
    return new Subscription(stream, listeners);
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
  }

  /** Unsubscribe a stream whose last subscription has ended. */
  leave(stream) {
    if (!this.#streams.delete(stream)) return;
    this.#connection.send({ type: "unsubscribe", ...stream.topic });
  }

  #open() {
    if (this.#state.state === "closed") throw new CandledError("the client was closed", "closed");
    if (this.#state.state === "idle") {
      this.#connection.open();
      this.#watch = setInterval(() => this.#askAgain(), ASK_AGAIN_MS / 4);
    }
  }

  #opened() {
    for (const stream of this.#streams) {
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
    const { position, series } = stream;
    const request = { type: "subscribe", id: stream.askedId, ...stream.topic, initialBars: stream.wanted };
    Object.assign(request, { ...this.#form, status: true, corrections: true });
    if (position && series.last) request.resume = { ...position, time: series.last.time };
    this.#connection.send(request);
    stream.notifyStatus();
  }

  /** Repeat subscriptions that were never answered: they were lost, for instance to the server's limit on messages. */
  #askAgain() {
    const before = Date.now() - ASK_AGAIN_MS;
    for (const stream of this.#streams) {
      const isOpen = stream.isInitialized || stream.isAcknowledged || stream.refusal;
      if (this.#connection.state === "open" && !isOpen && stream.askedAt < before) this.#ask(stream);
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

  #acknowledged({ id, exchange }) {
    const stream = [...this.#streams].find((one) => one.askedId === id);
    if (!stream) return;
    stream.isAcknowledged = true;
    if (exchange === undefined && stream.topic.exchange) this.defaultExchange = stream.topic.exchange;
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
    const stream = [...this.#streams].find((one) => (id === undefined ? one.isMeantBy(message) : one.askedId === id));
    stream?.refuse(new CandledError(message, code, temporary));
  }

  #repeat(id) {
    const request = this.#requests.get(id);
    if (request) this.#connection.send({ ...request.message, id });
  }

  #setState(state) {
    this.#state = state;
    for (const stream of this.#streams) stream.onConnectionState();
    this.#options.onState(state);
  }
}

/** The stream of one interval of one market, shared by all subscriptions of this client to it. */
class Stream {
  followers = new Set();
  position = null;
  askedId = null;
  askedAt = 0;
  isAcknowledged = false;
  isInitialized = false; // true once `initial` or `resumed` has arrived on this connection
  refusal = null;
  #client;
  #feed = null;
  #loading = null;
  #missed = [];
  #end = false;

  constructor(client, { symbol, interval, exchange }, wanted, keep) {
    this.#client = client;
    this.topic = exchange === null ? { symbol, interval } : { symbol, interval, exchange };
    this.wanted = wanted;
    this.series = new Series(Math.max(keep, wanted));
    this.status = this.#describe();
  }

  isOn(symbol, interval, exchange) {
    const { topic } = this;
    return topic.symbol === symbol && topic.interval === interval && (topic.exchange ?? null) === exchange;
  }

  isAbout({ symbol, interval, exchange }, defaultExchange) {
    const { topic } = this;
    const isSameExchange = (exchange ?? defaultExchange) === (topic.exchange ?? defaultExchange);
    return topic.symbol === symbol && (interval ?? topic.interval) === topic.interval && isSameExchange;
  }

  /** Return true if an error without an id can only mean this subscription. */
  isMeantBy(text) {
    const { symbol, interval, exchange } = this.topic;
    const names = [`Invalid symbol: ${symbol}.`, `Invalid interval: ${interval}.`, `Invalid exchange: ${exchange}.`];
    return !this.isInitialized && (names.some((name) => text.startsWith(name)) || text.startsWith("Too many subscriptions"));
  }

  /** True if no bars older than the first one exist. */
  get end() {
    return this.#end;
  }

  /** Request all bars the next time, not only the changes. */
  reset() {
    this.position = null;
  }

  take(message) {
    const { type, epoch, seq } = message;
    if (type === "initial" || type === "resumed") this.#onInitialized();
    else if (!this.isInitialized) return; // from an earlier subscription
    if (epoch !== undefined) this.position = { epoch, seq };
    else if (type === "initial") this.position = null;
    switch (type) {
      case "initial":
        this.#replace(message);
        break;
      case "resumed":
        this.#changed(this.series.merge(message.bars), { recovered: true });
        break;
      case "update":
        this.#changed(this.series.update(message.bar));
        break;
      default:
        if (this.#loading) this.#missed.push(message.bar);
        this.#changed(this.series.correct(message.bar));
    }
    this.notifyStatus();
  }

  /** Leave the client: the last subscription has ended. */
  ended() {
    this.#client.leave(this);
  }

  setFeedState({ state, since, reason }) {
    this.#feed = reason === undefined ? { state, since } : { state, since, reason };
    this.notifyStatus();
  }

  onConnectionState() {
    if (this.#client.state.state !== "open") {
      this.#feed = null;
      this.isInitialized = false;
    }
    this.notifyStatus();
  }

  notifyStatus() {
    const status = this.#describe();
    if (JSON.stringify(status) === JSON.stringify(this.status)) return;
    this.status = status;
    this.emit("onStatus", status);
  }

  refuse(error) {
    if (error.temporary) this.askedAt = 0; // requested again soon
    else this.refusal = error;
    this.notifyStatus();
    this.emit("onError", error);
  }

  /** Load the page of history before the first bar; return `{ added, end }`. */
  async loadOlder(limit) {
    if (this.#end || !this.series.first) return { added: 0, end: this.#end };
    this.#loading ??= this.#load(limit).finally(() => {
      this.#loading = null;
      this.#missed = [];
    });
    return this.#loading;
  }

  async #load(limit) {
    const { first } = this.series;
    const { bars, end } = await this.#client.history({ ...this.topic, before: first.time, limit });
    if (this.series.first.time !== first.time) return { added: 0, end: false }; // the bars were replaced
    const change = this.series.prepend(bars);
    for (const bar of this.#missed) this.series.correct(bar);
    this.#end = end;
    this.#changed(change);
    return { added: change.changed.length, end };
  }

  #onInitialized() {
    this.isInitialized = true;
    this.refusal = null;
  }

  #replace({ bars, recovered = false }) {
    const isFirst = !this.series.last;
    this.#end = false;
    this.#changed(this.series.replace(bars), { isFirst, recovered });
  }

  #changed(change, more = {}) {
    if (change?.bar && !change.isOld && this.series.trim()) this.#end = false;
    if (change?.reason) this.emit("onBars", this.series.bars, { ...change, ...more });
    else if (change?.isOld) this.emit("onCorrection", change.bar);
    else if (change) this.emit("onBar", change.bar, change.isNew);
    for (const bar of this.series.takeFinal()) this.emit("onFinal", bar);
  }

  #describe() {
    const { state, retryAt, message } = this.#client.state;
    if (state === "lost") return { state, retryAt };
    if (state === "refused") return { state, message };
    if (state === "closed") return { state };
    if (this.refusal) return { state: "refused", message: this.refusal.message };
    if (state !== "open") return { state: "connecting" };
    if (!this.isInitialized && (this.#feed?.state ?? "live") === "live") return { state: "loading" };
    return this.#feed ?? { state: "live" };
  }

  emit(name, ...values) {
    for (const follower of [...this.followers]) follower.notify(name, values);
  }
}

/** One subscription to a stream, with its listeners. */
class Subscription {
  #stream;
  #listeners;
  #isOver = false;

  constructor(stream, listeners) {
    this.#stream = stream;
    this.#listeners = listeners;
    stream.followers.add(this);
    queueMicrotask(() => this.#greet());
  }

  /** All bars in memory, oldest first. The array is replaced when a bar changes. */
  get bars() {
    return this.#stream.series.bars;
  }

  /** The newest bar, or null. */
  get bar() {
    return this.#stream.series.last ?? null;
  }

  /**
   * `{ state }`: connecting, loading, live, quiet, polling, stale, warming, recovering (with `since` and `reason` if
   * the server sends them), lost (with `retryAt` in epoch ms), refused (with `message`) or closed.
   */
  get status() {
    return this.#isOver ? { state: "closed" } : this.#stream.status;
  }

  /** True if history was loaded back to its beginning. */
  get end() {
    return this.#stream.end;
  }

  /** Load the bars before the first one, over the same socket; return `{ added, end }`. `end`: no older bars exist. */
  loadOlder(limit = 500) {
    return this.#stream.loadOlder(limit);
  }

  /** End this subscription. Later subscriptions are not affected, even if you call this late. */
  unsubscribe() {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stream.followers.delete(this);
    if (!this.#stream.followers.size) this.#stream.ended();
  }

  notify(name, values) {
    if (this.#isOver) return;
    try {
      this.#listeners[name]?.(...values);
    } catch (error) {
      queueMicrotask(() => { throw error; }); // reported like any other error, without stopping the other listeners
    }
  }

  /** Call the listeners with the status and the bars that the stream already has. */
  #greet() {
    this.notify("onStatus", [this.status]);
    if (this.bar) this.notify("onBars", [this.bars, { reason: "initial", changed: this.bars, isFirst: true, recovered: false }]);
  }
}
