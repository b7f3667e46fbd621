/** A React hook over the client. See docs/how-to/clients.md. */
import type { Bar, CandledClient, Status, SubscribeRequest } from "./candled.js";

export interface UseCandlesOptions extends SubscribeRequest {
  /** The server's WebSocket address. All hooks with the same URL share one WebSocket. */
  url?: string;
  /** Your own client, instead of `url`. */
  client?: CandledClient | null;
}

export interface Candles {
  readonly bars: readonly Bar[];
  readonly bar: Bar | null;
  readonly status: Status;
  readonly end: boolean;
  loadOlder(limit?: number): Promise<{ added: number; end: boolean }>;
}

export function useCandles(options: UseCandlesOptions): Candles;
