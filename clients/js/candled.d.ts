/** Live candles from a candled server. See docs/how-to/clients.md. */

/**
 * One bar. `final`, `rev` and `src` exist if the server sends them. `N` is `string` for a client with
 * `numbers: "string"`: `new CandledClient<string>(url, { numbers: "string" })`.
 */
export interface Bar<N extends number | string = number> {
  /** The start of the bar: ISO 8601 with milliseconds and `Z`. */
  readonly time: string;
  readonly open: N;
  readonly high: N;
  readonly low: N;
  readonly close: N;
  /** In base currency. */
  readonly volume: N;
  /** In quote currency; undefined if the exchange does not send it. */
  readonly quoteVolume?: N;
  /** True once the bar is over and the grace period for late updates has passed. */
  readonly final?: boolean;
  /** How often it was revised after it was final. */
  readonly rev?: number;
  /** The source of the bar: live, rest, backfill or agg. */
  readonly src?: string;
}

export interface Topic {
  symbol: string;
  interval: string;
  /** Default: the server's first exchange. */
  exchange?: string | null;
}

export interface SubscribeRequest extends Topic {
  /** The number of bars to start with: 0 to 1000, default 100. */
  bars?: number;
}

export interface HistoryRequest extends Topic {
  /** Only bars that open before: ISO text, epoch milliseconds or Date. Default: now. */
  before?: string | number | Date;
  /** 1 to 1000, default 500. */
  limit?: number;
}

export interface HistoryPage<N extends number | string = number> {
  bars: Bar<N>[];
  /** True if no older bars exist. */
  end: boolean;
}

export type ConnectionState = "idle" | "connecting" | "open" | "lost" | "refused" | "closed";

export interface ClientState {
  state: ConnectionState;
  /** With `lost`: the time of the next attempt, in epoch milliseconds. */
  retryAt?: number;
  /** With `refused`: why the server asked this client not to reconnect. */
  message?: string;
}

export type FeedState = "live" | "quiet" | "polling" | "stale" | "warming" | "recovering";

export interface Status {
  state: "connecting" | "loading" | FeedState | "lost" | "refused" | "closed";
  /** When the feed entered this state, ISO 8601; undefined if the server does not send the feed's state. */
  since?: string;
  /** Why the feed is not live: one word of docs/how-to/troubleshooting.md. */
  reason?: string;
  retryAt?: number;
  message?: string;
}

export interface Change<N extends number | string = number> {
  reason: "initial" | "resumed" | "history" | "inserted";
  /** The new and changed bars, oldest first. */
  changed: readonly Bar<N>[];
  /** With `initial`: true if there were no bars before. */
  isFirst?: boolean;
  /** With `initial` and `resumed`: true if the server proved that `changed` contains all missed changes. */
  recovered?: boolean;
}

export interface Listeners<N extends number | string = number> {
  /** All bars, at first and whenever more than one bar changed. */
  onBars?(bars: readonly Bar<N>[], change: Change<N>): void;
  /** The newest bar changed, or (`isNew`) the next one opened. */
  onBar?(bar: Bar<N>, isNew: boolean): void;
  /** An older bar was revised. */
  onCorrection?(bar: Bar<N>): void;
  /** A bar became final: once for each, oldest first. */
  onFinal?(bar: Bar<N>): void;
  onStatus?(status: Status): void;
  onError?(error: CandledError): void;
}

export interface Subscription<N extends number | string = number> {
  /** All bars in memory, oldest first. The array is replaced when a bar changes. */
  readonly bars: readonly Bar<N>[];
  /** The newest bar. */
  readonly bar: Bar<N> | null;
  readonly status: Status;
  /** True if history was loaded back to its beginning. */
  readonly end: boolean;
  /** Load the page of history before the first bar. */
  loadOlder(limit?: number): Promise<{ added: number; end: boolean }>;
  /** End this subscription. Later subscriptions are not affected, even if you call this late. */
  unsubscribe(): void;
}

export interface ClosedBarsRequest {
  /** Default `*`, all markets. See docs/reference/protocol.md. */
  pattern?: string;
  /** Default `1m`. */
  interval?: string;
  /** Default: the server's first exchange. */
  exchange?: string | null;
}

export interface ClosedBarsListeners<N extends number | string = number> {
  /** A bar of a market became final: once for each, in the order of time of each market. */
  onBar?(symbol: string, bar: Bar<N>): void;
  /** A bar was revised, or became final after a newer one. */
  onCorrection?(symbol: string, bar: Bar<N>): void;
  /** Markets were added and removed: at first all of them are added. */
  onMarkets?(added: readonly string[], removed: readonly string[]): void;
  /** `live` once the server has accepted the subscription. */
  onStatus?(status: Status): void;
  onError?(error: CandledError): void;
}

export interface ClosedBarsSubscription {
  /** The symbols of the selected markets. The array is replaced when they change. */
  readonly markets: readonly string[];
  readonly status: Status;
  /** End this subscription. Later subscriptions are not affected, even if you call this late. */
  unsubscribe(): void;
}

export interface ClientOptions {
  /** A WebSocket class, for instance of the package `ws`. Default: the global one. */
  WebSocket?: unknown;
  /** The exchange that messages do not name. By default, it is learned from the server when needed. */
  defaultExchange?: string | null;
  /** The number of bars of a stream kept in memory, in addition to those loaded from history. Default 20000. */
  keep?: number;
  /** The format of numbers in bars. `string` keeps digits that a JavaScript number would lose. Default `number`. */
  numbers?: "number" | "string";
  onState?(state: ClientState): void;
  pingEveryMs?: number;
  answerWithinMs?: number;
  openWithinMs?: number;
  firstRetryMs?: number;
  longestRetryMs?: number;
  historyWithinMs?: number;
  /** For tests: returns a number from 0 to 1 for the jitter. */
  random?(): number;
}

export class CandledError extends Error {
  /** The server's code, or `closed`, `timeout`, `unsupported`. */
  readonly code: number | "closed" | "timeout" | "unsupported" | null;
  readonly temporary: boolean;
}

export class CandledClient<N extends number | string = number> {
  constructor(url: string | URL, options?: ClientOptions);
  readonly state: ClientState;
  defaultExchange: string | null;
  subscribe(request: SubscribeRequest, listeners?: Listeners<N>): Subscription<N>;
  closedBars(request?: ClosedBarsRequest, listeners?: ClosedBarsListeners<N>): ClosedBarsSubscription;
  history(request: HistoryRequest): Promise<HistoryPage<N>>;
  /** End all streams and requests, and close the socket. */
  close(): void;
}
