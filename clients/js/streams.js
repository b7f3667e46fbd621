/** The streams of a client, and the subscriptions to them. */
import { Series } from "./series.js";

const PATTERN_FIELDS = ["final", "rev", "src"];

/** What the streams of markets and of patterns share: the request, its answer, and the followers. */
class ServerStream {
  followers = new Set();
  askedId = null;
  askedAt = 0;
  isAcknowledged = false;
  refusal = null;
  status = { state: "connecting" };

  constructor(client, { symbol, interval, exchange }) {
    this.client = client;
    this.topic = exchange === null ? { symbol, interval } : { symbol, interval, exchange };
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
    return !this.isAnswered && (names.some((name) => text.startsWith(name)) || text.startsWith("Too many subscriptions"));
  }

  /** True if the server has accepted or refused the subscription on this connection. */
  get isAnswered() {
    return this.isAcknowledged || this.refusal !== null;
  }

  /** Leave the client: the last subscription has ended. */
  ended() {
    this.client.leave(this);
  }

  onConnectionState() {
    this.notifyStatus();
  }

  notifyStatus() {
    const status = this.describe();
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

  /** The state that the connection or a refusal gives this stream; null if it is open. */
  describeConnection() {
    const { state, retryAt, message } = this.client.state;
    if (state === "lost") return { state, retryAt };
    if (state === "refused") return { state, message };
    if (state === "closed") return { state };
    if (this.refusal) return { state: "refused", message: this.refusal.message };
    return state === "open" ? null : { state: "connecting" };
  }

  emit(name, ...values) {
    for (const follower of [...this.followers]) follower.notify(name, values);
  }
}

/** The stream of one interval of one market, shared by all subscriptions of this client to it. */
export class MarketStream extends ServerStream {
  position = null;
  isInitialized = false; // true once `initial` or `resumed` has arrived on this connection
  #feed = null;
  #loading = null;
  #missed = [];
  #end = false;

  constructor(client, topic, wanted, keep) {
    super(client, topic);
    this.wanted = wanted;
    this.series = new Series(Math.max(keep, wanted));
  }

  /** The fields of the next `subscribe` message, besides the topic and the format. */
  get request() {
    const { position, series } = this;
    const request = { initialBars: this.wanted, status: true, corrections: true };
    if (position && series.last) request.resume = { ...position, time: series.last.time };
    return request;
  }

  get isAnswered() {
    return this.isInitialized || super.isAnswered;
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

  setFeedState({ state, since, reason }) {
    this.#feed = reason === undefined ? { state, since } : { state, since, reason };
    this.notifyStatus();
  }

  onConnectionState() {
    if (this.client.state.state !== "open") {
      this.#feed = null;
      this.isInitialized = false;
    }
    super.onConnectionState();
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
    const { bars, end } = await this.client.history({ ...this.topic, before: first.time, limit });
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

  describe() {
    const closed = this.describeConnection();
    if (closed) return closed;
    if (!this.isInitialized && (this.#feed?.state ?? "live") === "live") return { state: "loading" };
    return this.#feed ?? { state: "live" };
  }
}

/** The closed bars of all markets that a pattern selects, shared by all subscriptions of this client to it. */
export class PatternStream extends ServerStream {
  markets = Object.freeze([]);

  /** The fields of the next `subscribe` message, besides the topic and the format. */
  get request() {
    return { mode: "closed", fields: PATTERN_FIELDS, corrections: true, markets: true };
  }

  onConnectionState() {
    this.isAcknowledged = false;
    super.onConnectionState();
  }

  /** The subscription ended, or was not made: another one is made soon if that may help. */
  refuse(error) {
    this.isAcknowledged = false;
    super.refuse(error);
  }

  take({ type, symbol, bar, ...lists }) {
    if (type === "markets") this.#changeMarkets(lists);
    else this.emit(type === "update" ? "onBar" : "onCorrection", symbol, bar);
  }

  #changeMarkets({ symbols, added = [], removed = [] }) {
    const before = this.markets;
    const after = new Set(symbols ?? before);
    for (const symbol of removed) after.delete(symbol);
    for (const symbol of added) after.add(symbol);
    this.markets = Object.freeze([...after]);
    const known = new Set(before);
    const change = [this.markets.filter((one) => !known.has(one)), before.filter((one) => !after.has(one))];
    if (change.some((some) => some.length)) this.emit("onMarkets", ...change);
  }

  describe() {
    return this.describeConnection() ?? { state: this.isAcknowledged ? "live" : "loading" };
  }
}

/** One subscription to a stream, with its listeners. They are called from the next microtask on. */
class Subscription {
  stream;
  #listeners;
  #isOver = false;

  constructor(stream, listeners) {
    this.stream = stream;
    this.#listeners = listeners;
    stream.followers.add(this);
    queueMicrotask(() => this.greet());
  }

  /**
   * `{ state }`: connecting, loading, live, quiet, polling, stale, warming, recovering (with `since` and `reason` if
   * the server sends them), lost (with `retryAt` in epoch ms), refused (with `message`) or closed.
   */
  get status() {
    return this.#isOver ? { state: "closed" } : this.stream.status;
  }

  /** End this subscription. Later subscriptions are not affected, even if you call this late. */
  unsubscribe() {
    if (this.#isOver) return;
    this.#isOver = true;
    this.stream.followers.delete(this);
    if (!this.stream.followers.size) this.stream.ended();
  }

  notify(name, values) {
    if (this.#isOver) return;
    try {
      this.#listeners[name]?.(...values);
    } catch (error) {
      queueMicrotask(() => { throw error; }); // reported like any other error, without stopping the other listeners
    }
  }

  /** Call the listeners with the state that the stream already has. */
  greet() {
    this.notify("onStatus", [this.status]);
  }
}

/** A subscription to one interval of one market. */
export class MarketSubscription extends Subscription {
  /** All bars in memory, oldest first. The array is replaced when a bar changes. */
  get bars() {
    return this.stream.series.bars;
  }

  /** The newest bar, or null. */
  get bar() {
    return this.stream.series.last ?? null;
  }

  /** True if history was loaded back to its beginning. */
  get end() {
    return this.stream.end;
  }

  /** Load the bars before the first one, over the same socket; return `{ added, end }`. `end`: no older bars exist. */
  loadOlder(limit = 500) {
    return this.stream.loadOlder(limit);
  }

  greet() {
    super.greet();
    if (this.bar) this.notify("onBars", [this.bars, { reason: "initial", changed: this.bars, isFirst: true, recovered: false }]);
  }
}

/** A subscription to the closed bars of all markets that a pattern selects. */
export class PatternSubscription extends Subscription {
  /** The symbols of the selected markets. The array is replaced when they change. */
  get markets() {
    return this.stream.markets;
  }

  greet() {
    super.greet();
    if (this.markets.length) this.notify("onMarkets", [this.markets, []]);
  }
}
