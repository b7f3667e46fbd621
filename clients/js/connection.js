/** A WebSocket connection that is replaced when it ends, fails to open, or stops answering pings. */

const MESSAGES_PER_SECOND = 15; // by default the server refuses more than 20

const TIMINGS = {
  pingEveryMs: 20000,
  answerWithinMs: 10000,
  openWithinMs: 15000,
  firstRetryMs: 1000,
  longestRetryMs: 30000,
};

/**
 * Connects, and nothing else: its owner subscribes again in `onOpen`.
 *
 * `onState(state, details)` is called with `connecting`, `open`, `lost` (with `retryAt` in epoch ms), `refused` (the
 * server asked the client not to reconnect, with `message`) and `closed`.
 */
export class ServerConnection {
  #url;
  #options;
  #socket = null;
  #state = "idle";
  #failures = 0;
  #byeMs = null;
  #outgoing = [];
  #sentAt = [];
  #timers = { deadline: null, retry: null, ping: null, pump: null };
  #due = 0;
  #onOnline = () => this.retryNow();
  #onVisibility = () => globalThis.document.hidden || this.retryNow();

  constructor(url, options) {
    this.#url = url;
    this.#options = { WebSocket: globalThis.WebSocket, random: Math.random, ...TIMINGS, ...options };
    if (!this.#options.WebSocket) {
      throw new TypeError("no WebSocket class is available: pass one, new CandledClient(url, { WebSocket })");
    }
  }

  get state() {
    return this.#state;
  }

  /** Connect, if that was not done before. */
  open() {
    if (this.#state !== "idle") return;
    globalThis.addEventListener?.("online", this.#onOnline);
    globalThis.document?.addEventListener("visibilitychange", this.#onVisibility);
    this.#connect();
  }

  /** Send a message if the connection is open. Otherwise drop it: `onOpen` sends it on the next connection. */
  send(message) {
    if (this.#state !== "open") return;
    this.#outgoing.push(JSON.stringify(message));
    this.#pump();
  }

  /** Reconnect after this time, as the server requested before closing the connection. */
  expectEnd(reconnectAfterMs) {
    this.#byeMs = reconnectAfterMs;
  }

  /** Reconnect now instead of waiting: the network is back, or the page is visible again. */
  retryNow() {
    if (this.#state === "lost") this.#connect();
  }

  /** Close the socket permanently, and remove all timers and listeners. */
  close() {
    globalThis.removeEventListener?.("online", this.#onOnline);
    globalThis.document?.removeEventListener("visibilitychange", this.#onVisibility);
    this.#drop();
    this.#setState("closed");
  }

  #connect() {
    this.#drop();
    this.#setState("connecting");
    const socket = new this.#options.WebSocket(this.#url);
    this.#socket = socket;
    this.#expect(this.#options.openWithinMs);
    socket.onopen = () => this.#opened();
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#ended(code, reason);
    socket.onerror = () => {}; // a close event follows; a Node socket without a listener would throw
  }

  #opened() {
    this.#setState("open");
    this.#ping();
    this.#timers.ping = setInterval(() => this.#ping(), this.#options.pingEveryMs);
    this.#options.onOpen();
  }

  #receive(data) {
    clearTimeout(this.#timers.deadline);
    this.#failures = 0;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return; // not a message of this protocol; later ones may be
    }
    if (typeof message?.type === "string") this.#options.onMessage(message);
  }

  #ping() {
    this.#socket.send('{"type":"ping"}'); // ahead of messages queued by the rate limit
    this.#expect(this.#options.answerWithinMs);
  }

  /** Expect a message in time. Any message counts. */
  #expect(withinMs) {
    clearTimeout(this.#timers.deadline);
    this.#due = Date.now() + withinMs;
    this.#timers.deadline = setTimeout(() => this.#unanswered(), withinMs);
  }

  /** Give up the connection, or ping again if this timer ran late, as after sleep: messages may still be unread. */
  #unanswered() {
    const late = Date.now() - this.#due > 1000;
    if (late && this.#state === "open") this.#ping();
    else this.#onLost();
  }

  #ended(code, reason) {
    if (code >= 3500 && code < 4000) {
      this.#drop();
      this.#setState("refused", { message: reason || `closed with ${code}` });
    } else {
      this.#onLost();
    }
  }

  /** Reconnect later. The wait doubles with every failure, and half of it is random, so that clients spread out. */
  #onLost() {
    this.#drop();
    const { firstRetryMs, longestRetryMs, random } = this.#options;
    const longest = Math.min(firstRetryMs * 2 ** this.#failures, longestRetryMs);
    let waitMs = (longest * (1 + random())) / 2;
    if (this.#byeMs !== null) waitMs = this.#byeMs * (1 + random() / 4);
    else this.#failures += 1;
    this.#byeMs = null;
    this.#timers.retry = setTimeout(() => this.#connect(), waitMs);
    this.#setState("lost", { retryAt: Date.now() + waitMs });
  }

  #pump() {
    const now = Date.now();
    this.#sentAt = this.#sentAt.filter((at) => at > now - 1000 && at <= now);
    while (this.#outgoing.length && this.#sentAt.length < MESSAGES_PER_SECOND) {
      this.#socket.send(this.#outgoing.shift());
      this.#sentAt.push(now);
    }
    clearTimeout(this.#timers.pump);
    if (this.#outgoing.length) this.#timers.pump = setTimeout(() => this.#pump(), this.#sentAt[0] + 1000 - now);
  }

  /** Drop the socket without waiting: the closing handshake with a dead peer can take minutes. */
  #drop() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#outgoing = [];
    this.#sentAt = [];
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #setState(state, details = {}) {
    this.#state = state;
    this.#options.onState(state, details);
  }
}
