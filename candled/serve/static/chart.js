/** Candles, volume and the numbers of one bar, drawn by lightweight-charts. */
import { drawing, loadOnScroll, priceDecimals } from "../clients/lightweight-charts.js";
import { marketName } from "./markets.js";
import { changeText, direction, timeText, volumeText } from "./words.js";

const { LightweightCharts } = window;
const byId = (id) => document.getElementById(id);
const RIGHT_OFFSET = 4; // empty bars to the right of the newest
const VALUES = ["bar-time", "open", "high", "low", "close", "change", "volume", "finality"];

export class ChartView {
  #stream = null;
  #pointed = null; // the time of the bar under the pointer, ISO 8601
  #declared = null;
  #decimals = 2;
  #colors = {};
  #endLoading = () => {};

  constructor() {
    this.chart = LightweightCharts.createChart(byId("chart"), {
      autoSize: true,
      crosshair: { mode: LightweightCharts.CrosshairMode.Normal },
      timeScale: { timeVisible: true, secondsVisible: false, rightOffset: RIGHT_OFFSET, minBarSpacing: 0.2 },
    });
    this.candles = this.chart.addSeries(LightweightCharts.CandlestickSeries, {
      borderVisible: false,
      priceLineSource: LightweightCharts.PriceLineSource.LastVisible,
    });
    this.volumes = this.chart.addSeries(LightweightCharts.HistogramSeries, {
      priceScaleId: "",
      priceFormat: { type: "volume" },
      lastValueVisible: false,
      priceLineVisible: false,
    });
    this.candles.priceScale().applyOptions({ scaleMargins: { top: 0.08, bottom: 0.24 } });
    this.volumes.priceScale().applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
    this.chart.subscribeCrosshairMove(({ time }) => this.#point(time));
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => this.#showPosition(range));
    byId("newest").addEventListener("click", () => this.#toNewest());
    this.#setDecimals(2);
    this.paint();
  }

  /** Return the listeners for `client.subscribe`. Call `watch` with the subscription. */
  listeners() {
    const draw = drawing({ candles: this.candles, volumes: this.volumes, colors: () => this.#colors });
    return {
      onBars: (bars, change) => {
        if (change.isFirst) this.#setDecimals(this.#declared ?? priceDecimals(bars));
        draw.onBars(bars);
        if (change.isFirst) this.#showNewest(bars.length);
        this.#showValues();
      },
      onBar: (bar) => {
        if (this.#declared === null) this.#widen(priceDecimals([bar]));
        draw.onBar(bar);
        this.#showValues();
      },
      onCorrection: (bar) => {
        draw.onCorrection(bar);
        this.#showValues();
      },
    };
  }

  /** Show another stream. Nothing is drawn until its bars arrive. */
  watch(stream, { market, interval }) {
    this.#endLoading();
    this.#stream = stream;
    this.#pointed = null;
    this.#declared = market.priceDecimals;
    this.candles.setData([]);
    this.volumes.setData([]);
    this.chart.applyOptions({ timeScale: { timeVisible: !/[DW]$/.test(interval) } });
    byId("chart").setAttribute("aria-label", `Candlestick chart of ${marketName(market)}, ${interval}`);
    this.#endLoading = loadOnScroll(this.chart, stream);
    this.#showValues();
  }

  /** Use the colours of page.css in the current colour scheme. */
  paint() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    this.#colors = { up: color("--up-volume"), down: color("--down-volume") };
    this.chart.applyOptions({
      layout: {
        background: { type: "solid", color: color("--ground") },
        textColor: color("--faint"),
        fontFamily: getComputedStyle(document.body).fontFamily,
      },
      grid: { vertLines: { color: color("--grid") }, horzLines: { color: color("--grid") } },
      rightPriceScale: { borderColor: color("--line") },
      timeScale: { borderColor: color("--line") },
    });
    const [up, down] = [color("--up"), color("--down")];
    this.candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
    if (this.#stream) this.listeners().onBars(this.#stream.bars, { isFirst: false });
  }

  /** Move and zoom by key; return false for other keys. */
  key(name) {
    const scale = this.chart.timeScale();
    const zoom = (factor) => scale.applyOptions({ barSpacing: scale.options().barSpacing * factor });
    const actions = {
      ArrowLeft: () => scale.scrollToPosition(scale.scrollPosition() - 10, false),
      ArrowRight: () => scale.scrollToPosition(scale.scrollPosition() + 10, false),
      "+": () => zoom(1.25),
      "=": () => zoom(1.25),
      "-": () => zoom(0.8),
      Home: () => this.#toOldest(),
      End: () => this.#toNewest(),
    };
    if (!(name in actions)) return false;
    actions[name]();
    return true;
  }

  get price() {
    return byId("price").textContent;
  }

  #showNewest(count) {
    const wanted = Math.max(30, Math.floor(byId("chart").clientWidth / 8));
    this.chart.priceScale("right").applyOptions({ autoScale: true });
    this.chart.timeScale().setVisibleLogicalRange({ from: count - wanted, to: count + RIGHT_OFFSET });
  }

  #toNewest() {
    this.chart.timeScale().scrollToPosition(RIGHT_OFFSET, false);
  }

  #toOldest() {
    const scale = this.chart.timeScale();
    const { from, to } = scale.getVisibleLogicalRange() ?? { from: 0, to: 0 };
    scale.setVisibleLogicalRange({ from: -2, to: to - from - 2 });
  }

  /** Show if older bars are loading, and the button that leads back to the newest bar. */
  #showPosition(range) {
    const isAtBeginning = Boolean(range && this.#stream?.bar && range.from < 5);
    byId("past").hidden = !isAtBeginning;
    if (isAtBeginning) {
      const since = timeText(this.#stream.bars[0].time);
      byId("past").textContent = this.#stream.end ? `Nothing older exists than ${since}` : "Loading older bars…";
    }
    byId("newest").hidden = !range || !this.#stream || range.to > this.#stream.bars.length - 3;
  }

  #widen(decimals) {
    if (decimals > this.#decimals) this.#setDecimals(decimals);
  }

  #setDecimals(decimals) {
    this.#decimals = decimals;
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    this.priceText = new Intl.NumberFormat("en-US", digits).format;
    const priceFormat = { type: "custom", minMove: 10 ** -decimals, formatter: this.priceText };
    this.candles.applyOptions({ priceFormat });
  }

  #point(seconds) {
    this.#pointed = seconds === undefined ? null : new Date(seconds * 1000).toISOString();
    this.#showValues();
  }

  /** Show the numbers of the bar under the pointer, or else of the newest one. */
  #showValues() {
    const last = this.#stream?.bar;
    const bar = this.#pointed === null ? last : (findBar(this.#stream.bars, this.#pointed) ?? last);
    byId("price").textContent = last ? this.priceText(last.close) : "–";
    byId("price").className = last ? direction(last) : "";
    byId("change").className = bar ? direction(bar) : "";
    const texts = bar ? this.#texts(bar) : {};
    for (const id of VALUES) byId(id).textContent = texts[id] ?? (id === "finality" ? "" : "–");
    this.#showPosition(this.chart.timeScale().getVisibleLogicalRange());
  }

  #texts(bar) {
    const [open, high, low, close] = [bar.open, bar.high, bar.low, bar.close].map(this.priceText);
    const revised = bar.rev ? `, revised ${bar.rev}×` : "";
    const finality = bar.final === undefined ? "" : `${bar.final ? "final" : "forming"}${revised}`;
    const more = { change: changeText(bar), volume: volumeText(bar.volume), finality };
    return { "bar-time": timeText(bar.time), open, high, low, close, ...more };
  }
}

/** Return the bar of a time from sorted bars. */
function findBar(bars, time) {
  let [low, high] = [0, bars.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (bars[middle].time < time) low = middle + 1;
    else high = middle;
  }
  return bars[low]?.time === time ? bars[low] : undefined;
}
