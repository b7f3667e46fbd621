/**
 * Draws a stream on series of lightweight-charts, and keeps them in step.
 *
 *     const candles = chart.addSeries(CandlestickSeries), volumes = chart.addSeries(HistogramSeries);
 *     const stream = follow(client, { symbol: "BTC/USDT", interval: "5m" }, { candles, volumes });
 *     stream.unsubscribe();
 *
 * Only functions over the client; the chart stays yours. A correction is drawn where its bar stands, what runs
 * backwards never reaches the chart.
 */
export { priceDecimals } from "./numbers.js";

/** A bar as a candlestick series takes it: `time` in UTC seconds. */
export function candleItem({ time, open, high, low, close }) {
  return { time: Date.parse(time) / 1000, open: Number(open), high: Number(high), low: Number(low), close: Number(close) };
}

/** A bar as a histogram series takes it; `colors` has `up` and `down`. */
export function volumeItem({ time, open, close, volume }, colors = {}) {
  const color = Number(close) < Number(open) ? colors.down : colors.up;
  return { time: Date.parse(time) / 1000, value: Number(volume), ...(color && { color }) };
}

/**
 * The listeners that draw on `candles` and, if given, on `volumes`; hand them to `client.subscribe`.
 *
 * `colors` may be a function, asked at every drawing, so that volumes follow a change of theme.
 */
export function drawing({ candles, volumes = null, colors = {} }) {
  const shades = () => (typeof colors === "function" ? colors() : colors);
  return {
    onBars(bars) {
      candles.setData(bars.map(candleItem));
      volumes?.setData(bars.map((bar) => volumeItem(bar, shades())));
    },
    onBar(bar) {
      candles.update(candleItem(bar));
      volumes?.update(volumeItem(bar, shades()));
    },
    onCorrection(bar) {
      candles.update(candleItem(bar), true);
      volumes?.update(volumeItem(bar, shades()), true);
    },
  };
}

/** Subscribe and draw; further `listeners` are called after the drawing. */
export function follow(client, request, series, listeners = {}) {
  const draw = drawing(series);
  const both = Object.entries(draw).map(([name, paint]) => [
    name,
    (...facts) => {
      paint(...facts);
      listeners[name]?.(...facts);
    },
  ]);
  return client.subscribe(request, { ...listeners, ...Object.fromEntries(both) });
}

/**
 * Load older bars whenever the beginning of the data comes into view, until nothing older exists.
 *
 * Returns a function that ends it. Call it after `follow`, once for each stream.
 */
export function loadOnScroll(chart, subscription, { ahead = 50, limit = 500 } = {}) {
  const scale = chart.timeScale();
  let [isOver, isLoading] = [false, false];
  const look = async () => {
    const range = scale.getVisibleLogicalRange();
    if (isOver || isLoading || !range || range.from > ahead || subscription.end || !subscription.bar) return;
    isLoading = true;
    let again = false;
    try {
      again = (await subscription.loadOlder(limit)).added > 0; // a wide view may still want more
    } catch (error) {
      if (error.temporary) setTimeout(look, 1000);
    }
    isLoading = false;
    if (again) look();
  };
  scale.subscribeVisibleLogicalRangeChange(look);
  look();
  return () => {
    isOver = true;
    scale.unsubscribeVisibleLogicalRangeChange(look);
  };
}
