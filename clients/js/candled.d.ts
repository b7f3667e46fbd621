/** Live candles from a candled server. See docs/how-to/clients.md. */

/**
 * One bar. `final`, `rev` and `src` are there when the server tells them. `N` is `string` for a client with
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
  /** In quote currency; absent where the exchange does not send it. */
  readonly quoteVolume?: N;
  /** Whether the bar is over and its late versions had their chance. */
  readonly final?: boolean;
  /** How often it was revised after it was final. */
  readonly rev?: number;
  /** Where it came from: live, rest, backfill, agg. */
  readonly src?: string;
}

export interface Topic {
  symbol: string;
  interval: string;
  /** Default: the first exchange that the server has. */
  exchange?: string | null;
}

export interface SubscribeRequest extends Topic {
  /** How many bars to begin with: 0 to 1000, default 100. */
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
  /** Nothing older exists. */
  end: boolean;
}

export type LinkState = "idle" | "connecting" | "open" | "lost" | "refused" | "closed";

export interface ClientState {
  state: LinkState;
  /** With `lost`: when the next attempt is, in epoch milliseconds. */
  retryAt?: number;
  /** With `refused`: why the server wants this client not to come back. */
  message?: string;
}

export type FeedState = "live" | "quiet" | "polling" | "stale" | "warming" | "recovering";

export interface Status {
  state: "connecting" | "loading" | FeedState | "lost" | "refused" | "closed";
  /** Since when the feed is so, ISO 8601; absent where the server does not tell the state of the feed. */
  since?: string;
  /** Why the feed is not live, one word of docs/how-to/troubleshooting.md. */
  reason?: string;
  retryAt?: number;
  message?: string;
}

export interface Change<N extends number | string = number> {
  reason: "initial" | "resumed" | "history" | "inserted";
  /** The bars that are new or differ from before, oldest first. */
  changed: readonly Bar<N>[];
  /** With `initial`: whether no bar was held before. */
  isFirst?: boolean;
  /** With `initial` and `resumed`: whether the server proved that `changed` is all that was missed. */
  recovered?: boolean;
}

export interface Listeners<N extends number | string = number> {
  /** All bars, at first and whenever more than one bar changed. */
  onBars?(bars: readonly Bar<N>[], change: Change<N>): void;
  /** The newest bar moved, or (`isNew`) the next one opened. */
  onBar?(bar: Bar<N>, isNew: boolean): void;
  /** An older bar was revised where it stands. */
  onCorrection?(bar: Bar<N>): void;
  /** A bar became final: once for each, oldest first. */
  onFinal?(bar: Bar<N>): void;
  onStatus?(status: Status): void;
  onError?(error: CandledError): void;
}

export interface Subscription<N extends number | string = number> {
  /** All bars that are held, oldest first; a new array whenever one of them changes. */
  readonly bars: readonly Bar<N>[];
  /** The newest bar. */
  readonly bar: Bar<N> | null;
  readonly status: Status;
  /** Whether history was loaded to its beginning. */
  readonly end: boolean;
  /** Put the page of history before the first bar in front of it. */
  loadOlder(limit?: number): Promise<{ added: number; end: boolean }>;
  /** End this subscription and no other, however late it is called. */
  unsubscribe(): void;
}

export interface ClientOptions {
  /** A WebSocket class, for instance of the package `ws`. Default: the global one. */
  WebSocket?: unknown;
  /** The exchange that messages do not name; learned from the server where it is needed. */
  defaultExchange?: string | null;
  /** How many bars of a stream are held at most, beside those loaded from history. Default 20000. */
  keep?: number;
  /** How the server prints the numbers of bars; `string` keeps digits that a JavaScript number cannot hold. Default `number`. */
  numbers?: "number" | "string";
  onState?(state: ClientState): void;
  pingEveryMs?: number;
  answerWithinMs?: number;
  openWithinMs?: number;
  firstRetryMs?: number;
  longestRetryMs?: number;
  historyWithinMs?: number;
  /** For tests: a number from 0 to 1 that decides the jitter. */
  random?(): number;
}

export class CandledError extends Error {
  /** The server's number, or `closed`, `timeout`, `unsupported`. */
  readonly code: number | "closed" | "timeout" | "unsupported" | null;
  readonly temporary: boolean;
}

export class CandledClient<N extends number | string = number> {
  constructor(url: string | URL, options?: ClientOptions);
  readonly state: ClientState;
  defaultExchange: string | null;
  subscribe(request: SubscribeRequest, listeners?: Listeners<N>): Subscription<N>;
  history(request: HistoryRequest): Promise<HistoryPage<N>>;
  /** End every stream and request and let go of the socket. */
  close(): void;
}
