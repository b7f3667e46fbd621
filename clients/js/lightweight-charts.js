/**
 * Draws a stream on series of lightweight-charts, and keeps them up to date.
 *
 *     const candles = chart.addSeries(CandlestickSeries), volumes = chart.addSeries(HistogramSeries);
 *     const stream = follow(client, { symbol: "BTC/USDT", interval: "5m" }, { candles, volumes });
 *     stream.unsubscribe();
 *
 * These are functions on top of the client, and the chart remains yours. A correction replaces its bar on the chart;
 * an update that would run backwards is never drawn.
 */
export { priceDecimals } from "./numbers.js";

/** Return a bar for a candlestick series, with `time` in UTC seconds. */
export function candleItem({ time, open, high, low, close }) {
  return { time: Date.parse(time) / 1000, open: Number(open), high: Number(high), low: Number(low), close: Number(close) };
}

/** Return a bar's volume for a histogram series. `colors` has `up` and `down`. */
export function volumeItem({ time, open, close, volume }, colors = {}) {
  const color = Number(close) < Number(open) ? colors.down : colors.up;
  return { time: Date.parse(time) / 1000, value: Number(volume), ...(color && { color }) };
}

/**
 * Return listeners that draw on `candles` and, if given, on `volumes`. Pass them to `client.subscribe`.
 *
 * `colors` may be a function. It is called for every drawing, so that volumes can follow a change of theme.
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

/** Subscribe and draw. Your own `listeners` are called after the drawing. */
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
 * Load older bars whenever the beginning of the data comes into view, until no older bars exist.
 *
 * Call it after `follow`, once for each stream. It returns a function that stops the loading.
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
      again = (await subscription.loadOlder(limit)).added > 0; // a wide view may need more
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
