/** Draws a stream on series of lightweight-charts. See docs/how-to/clients.md. */
import type { Bar, CandledClient, Listeners, SubscribeRequest, Subscription } from "./candled.js";

export interface CandleItem {
  /** UTC seconds. */
  time: number;
  open: number;
  high: number;
  low: number;
  close: number;
}

export interface VolumeItem {
  time: number;
  value: number;
  color?: string;
}

export interface Colors {
  up?: string;
  down?: string;
}

interface Series<Item> {
  setData(items: Item[]): void;
  update(item: Item, historicalUpdate?: boolean): void;
}

export interface Drawn {
  /** The result of `chart.addSeries(CandlestickSeries)`. */
  candles: Series<any>;
  /** The result of `chart.addSeries(HistogramSeries)`. */
  volumes?: Series<any> | null;
  /** Colours of the volumes. A function is called for every drawing. */
  colors?: Colors | (() => Colors);
}

export function candleItem(bar: Bar<number | string>): CandleItem;
export function volumeItem(bar: Bar<number | string>, colors?: Colors): VolumeItem;
export function priceDecimals(bars: readonly Bar<number | string>[]): number;
export function drawing(drawn: Drawn): Required<Pick<Listeners<any>, "onBars" | "onBar" | "onCorrection">>;
export function follow<N extends number | string = number>(
  client: CandledClient<N>, request: SubscribeRequest, drawn: Drawn, listeners?: Listeners<N>,
): Subscription<N>;
export function loadOnScroll(
  chart: any, subscription: Subscription<any>, options?: { ahead?: number; limit?: number },
): () => void;
