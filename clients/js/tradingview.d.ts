/** A streaming datafeed for TradingView's Charting Library. See docs/how-to/clients.md. */
import type { CandledClient, ClientOptions } from "./candled.js";

export interface DatafeedOptions extends ClientOptions {
  /** Your own client, instead of a new one for this datafeed. */
  client?: CandledClient | null;
  /** Older bars on the chart have changed: call `chart.resetData()` here. */
  onReset?(listenerGuid: string): void;
  /** The time during which corrections are collected into one reset, in ms; default 500. */
  resetAfterMs?: number;
}

/** Implements `IBasicDataFeed` of the Charting Library. Its types are not published. */
export class CandledDatafeed {
  constructor(base: string | URL, options?: DatafeedOptions);
  close(): void;
  onReady(callback: (configuration: any) => void): void;
  searchSymbols(
    userInput: string, exchange: string, symbolType: string, onResult: (items: any[]) => void,
  ): Promise<void>;
  resolveSymbol(
    symbolName: string, onResolve: (symbolInfo: any) => void, onError: (reason: string) => void,
  ): Promise<void>;
  getBars(
    symbolInfo: any,
    resolution: string,
    period: { from: number; to: number; countBack?: number; firstDataRequest?: boolean },
    onResult: (bars: any[], meta: { noData: boolean }) => void,
    onError: (reason: string) => void,
  ): Promise<void>;
  subscribeBars(
    symbolInfo: any,
    resolution: string,
    onTick: (bar: any) => void,
    listenerGuid: string,
    onResetCacheNeededCallback: () => void,
  ): Promise<void>;
  unsubscribeBars(listenerGuid: string): void;
  getServerTime(callback: (unixSeconds: number) => void): Promise<void>;
}
