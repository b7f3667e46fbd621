"use strict";
/* The chart page: one market and interval at a time, over the documented WebSocket protocol. */
(() => {
  const INITIAL_BARS = 500;
  const PING_EVERY_MS = 20000;
  const ANSWER_WITHIN_MS = 10000;
  const OPEN_WITHIN_MS = 15000;
  const FIRST_RETRY_MS = 1000;
  const LONGEST_RETRY_MS = 30000;
  const QUIET_AFTER_MS = 30000;

  const { version, defaultExchange, markets, intervals } = JSON.parse(byId("candled").textContent);

  function byId(id) {
    return document.getElementById(id);
  }

  // ---------------------------------------------------------------- which market and interval

  /** A choice is { market, interval }; in the URL it reads #BTC/USDT/5m, or #exchange:BTC/USDT/5m. */
  function readHash() {
    const text = decoded(location.hash.slice(1));
    const cut = text.lastIndexOf("/");
    const interval = intervals.includes(text.slice(cut + 1)) ? text.slice(cut + 1) : null;
    const name = interval === null ? text : text.slice(0, cut);
    const market = markets.find((candidate) => marketName(candidate) === name) ?? null;
    return { market: market ?? markets[0], interval: interval ?? intervals[0], unknown: market || !name ? null : name };
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a hash that somebody mistyped
    }
  }

  function marketName({ exchange, symbol }) {
    return exchange === defaultExchange ? symbol : `${exchange}:${symbol}`;
  }

  function writeHash({ market, interval }) {
    history.replaceState(null, "", `#${marketName(market)}/${interval}`);
  }

  /** The part of a message that names the stream; the exchange is named only where it is not the default. */
  function topic({ market, interval }) {
    const { exchange, symbol } = market;
    return exchange === defaultExchange ? { symbol, interval } : { exchange, symbol, interval };
  }

  function isAbout(message, { market, interval }) {
    const exchange = message.exchange ?? defaultExchange;
    return message.symbol === market.symbol && message.interval === interval && exchange === market.exchange;
  }

  // ---------------------------------------------------------------- numbers and times in words

  /** Digits after the point of a JSON number, which JavaScript prints as 1e-7 when it is small. */
  function decimalsOf(number) {
    const [digits, exponent = "0"] = String(number).split("e");
    return Math.max(0, (digits.split(".")[1] ?? "").length - Number(exponent));
  }

  const smallVolume = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 6 });
  const largeVolume = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });

  function volumeText(number) {
    return (number < 10000 ? smallVolume : largeVolume).format(number);
  }

  function timeText(seconds) {
    return new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
  }

  function changeText({ open, close }) {
    const percent = (close / open - 1) * 100;
    return `${percent < 0 ? "−" : "+"}${Math.abs(percent).toFixed(2)} %`;
  }

  // ---------------------------------------------------------------- the chart

  class View {
    constructor() {
      this.items = [];
      this.pointed = null;
      this.shown = null;
      this.chart = LightweightCharts.createChart(byId("chart"), {
        autoSize: true,
        crosshair: { mode: LightweightCharts.CrosshairMode.Normal },
        timeScale: { timeVisible: true, secondsVisible: false, rightOffset: 4 },
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
      this.candles.priceScale().applyOptions({ scaleMargins: { top: 0.06, bottom: 0.24 } });
      this.volumes.priceScale().applyOptions({ scaleMargins: { top: 0.82, bottom: 0 } });
      this.chart.subscribeCrosshairMove((move) => this.point(move.time));
      byId("chart").addEventListener("keydown", (event) => this.key(event));
      this.setDecimals(2);
      this.paint();
      const dark = matchMedia("(prefers-color-scheme: dark)");
      dark.addEventListener("change", () => this.paint());
    }

    /** Take the colours of page.css, in the scheme that holds now. */
    paint() {
      const style = getComputedStyle(document.documentElement);
      const colour = (name) => style.getPropertyValue(name).trim();
      this.upVolume = colour("--up-volume");
      this.downVolume = colour("--down-volume");
      this.chart.applyOptions({
        layout: {
          background: { type: "solid", color: colour("--ground") },
          textColor: colour("--faint"),
          fontFamily: getComputedStyle(document.body).fontFamily,
        },
        grid: { vertLines: { color: colour("--grid") }, horzLines: { color: colour("--grid") } },
        rightPriceScale: { borderColor: colour("--line") },
        timeScale: { borderColor: colour("--line") },
      });
      const [up, down] = [colour("--up"), colour("--down")];
      this.candles.applyOptions({ upColor: up, downColor: down, wickUpColor: up, wickDownColor: down });
      this.volumes.setData(this.items.map((item) => this.volume(item)));
    }

    /** Show another stream: nothing is drawn until its `initial` comes. */
    clear({ market, interval }) {
      this.declared = market.priceDecimals;
      this.shown = null;
      this.draw([]);
      this.chart.applyOptions({ timeScale: { timeVisible: !/[DW]$/.test(interval) } });
      byId("chart").setAttribute("aria-label", `Candlestick chart of ${marketName(market)}, ${interval}`);
      this.tell();
    }

    /** Replace everything; the part in view stays in view when the same stream is sent again. */
    initial(key, bars) {
      this.setDecimals(this.declared ?? Math.max(0, ...bars.map(barDecimals)));
      this.draw(bars.map(barItem));
      if (this.shown !== key) this.showNewest();
      this.shown = key;
      this.tell();
    }

    draw(items) {
      this.items = items;
      this.pointed = null;
      this.candles.setData(items);
      this.volumes.setData(items.map((item) => this.volume(item)));
    }

    /** Move the last bar or open the next one. A bar older than the last is not drawn. */
    update(bar) {
      const item = barItem(bar);
      const last = this.items.at(-1);
      if (this.shown === null || (last && item.time < last.time)) return;
      if (last?.time === item.time) this.items.pop();
      this.items.push(item);
      if (this.declared === null && barDecimals(bar) > this.decimals) this.setDecimals(barDecimals(bar));
      this.candles.update(item);
      this.volumes.update(this.volume(item));
      this.tell();
    }

    showNewest() {
      const count = this.items.length;
      const wanted = Math.max(30, Math.floor(byId("chart").clientWidth / 8));
      this.chart.priceScale("right").applyOptions({ autoScale: true });
      this.chart.timeScale().setVisibleLogicalRange({ from: count - wanted, to: count + 4 });
    }

    setDecimals(decimals) {
      this.decimals = decimals;
      const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
      this.priceText = new Intl.NumberFormat("en-US", digits).format;
      const priceFormat = { type: "custom", minMove: 10 ** -decimals, formatter: this.priceText };
      this.candles.applyOptions({ priceFormat });
    }

    volume({ time, open, close, volume }) {
      return { time, value: volume, color: close < open ? this.downVolume : this.upVolume };
    }

    /** Move and zoom without a mouse; keys with modifiers belong to the browser. */
    key(event) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const scale = this.chart.timeScale();
      const zoom = (factor) => scale.applyOptions({ barSpacing: scale.options().barSpacing * factor });
      const actions = {
        ArrowLeft: () => scale.scrollToPosition(scale.scrollPosition() - 10, false),
        ArrowRight: () => scale.scrollToPosition(scale.scrollPosition() + 10, false),
        "+": () => zoom(1.25),
        "-": () => zoom(0.8),
        End: () => scale.scrollToRealTime(),
      };
      if (!(event.key in actions)) return;
      actions[event.key]();
      event.preventDefault();
    }

    point(time) {
      this.pointed = time ?? null;
      this.tell();
    }

    /** Say in numbers what the bar under the pointer, or else the newest one, is. */
    tell() {
      const last = this.items.at(-1);
      const bar = this.items.findLast((item) => item.time === this.pointed) ?? last;
      byId("price").textContent = last ? this.priceText(last.close) : "–";
      byId("price").className = last ? direction(last) : "";
      byId("change").className = bar ? direction(bar) : "";
      for (const [id, text] of Object.entries(this.texts(bar))) byId(id).textContent = text;
    }

    texts(bar) {
      return {
        "bar-time": bar ? timeText(bar.time) : "–",
        open: bar ? this.priceText(bar.open) : "–",
        high: bar ? this.priceText(bar.high) : "–",
        low: bar ? this.priceText(bar.low) : "–",
        close: bar ? this.priceText(bar.close) : "–",
        change: bar ? changeText(bar) : "–",
        volume: bar ? volumeText(bar.volume) : "–",
      };
    }
  }

  /** A bar as the chart takes it, times in seconds; the volume rides along. */
  function barItem({ time, open, high, low, close, volume }) {
    return { time: Date.parse(time) / 1000, open, high, low, close, volume };
  }

  function barDecimals({ open, high, low, close }) {
    return Math.max(decimalsOf(open), decimalsOf(high), decimalsOf(low), decimalsOf(close));
  }

  function direction({ open, close }) {
    return close < open ? "down" : "up";
  }

  // ---------------------------------------------------------------- the connection

  /** One WebSocket at a time, replaced when it ends, fails to open, or stops answering pings. */
  class Link {
    constructor({ onOpen, onMessage, onState }) {
      Object.assign(this, { onOpen, onMessage, onState });
      this.failures = 0;
      this.socket = null;
      addEventListener("online", () => this.hurry());
      document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    }

    get isOpen() {
      return this.socket?.readyState === WebSocket.OPEN;
    }

    connect() {
      this.drop();
      this.onState("connecting");
      const socket = new WebSocket(socketUrl());
      this.socket = socket;
      this.expect(OPEN_WITHIN_MS);
      socket.onopen = () => {
        this.onOpen();
        this.ping();
        this.pinging = setInterval(() => this.ping(), PING_EVERY_MS);
      };
      socket.onmessage = ({ data }) => this.heard(data);
      socket.onclose = () => this.lost();
    }

    send(message) {
      if (this.isOpen) this.socket.send(JSON.stringify(message));
    }

    heard(data) {
      clearTimeout(this.deadline);
      this.failures = 0;
      this.onMessage(JSON.parse(data));
    }

    ping() {
      this.send({ type: "ping" });
      this.expect(ANSWER_WITHIN_MS);
    }

    /** Whatever is heard in time is proof of life. */
    expect(withinMs) {
      clearTimeout(this.deadline);
      this.deadline = setTimeout(() => this.lost(), withinMs);
    }

    /** Twice as long after every failure, and half of it by chance, so that not all pages come back at once. */
    lost() {
      this.drop();
      const longest = Math.min(FIRST_RETRY_MS * 2 ** this.failures, LONGEST_RETRY_MS);
      this.failures += 1;
      this.retryAt = Date.now() + (longest * (1 + Math.random())) / 2;
      this.countDown();
    }

    countDown() {
      const left = this.retryAt - Date.now();
      if (left <= 0) return this.connect();
      this.onState("lost", Math.ceil(left / 1000));
      this.waiting = setTimeout(() => this.countDown(), Math.min(left, 1000));
      return undefined;
    }

    /** The network or the reader came back: do not sit out the wait. */
    hurry() {
      if (this.socket === null) this.connect();
    }

    /** Let go of the socket at once: the closing handshake with a dead peer can take minutes. */
    drop() {
      clearTimeout(this.deadline);
      clearTimeout(this.waiting);
      clearInterval(this.pinging);
      const socket = this.socket;
      this.socket = null;
      if (!socket) return;
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  function socketUrl() {
    const url = new URL("ws", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.hash = "";
    url.search = "";
    return url.href;
  }

  // ---------------------------------------------------------------- the page

  class Page {
    constructor() {
      this.heardMs = 0;
      this.choice = readHash();
      this.fillSelectors();
      this.view = new View();
      this.link = new Link({
        onOpen: () => this.subscribe(),
        onMessage: (message) => this.take(message),
        onState: (...state) => this.tellLink(...state),
      });
      byId("problem-close").addEventListener("click", () => this.tellProblem(null));
      addEventListener("hashchange", () => this.choose(readHash()));
      setInterval(() => this.tellQuiet(), 1000);
      this.settle();
      this.link.connect();
    }

    fillSelectors() {
      byId("version").textContent = `candled ${version}`;
      const select = byId("market");
      const exchanges = [...new Set(markets.map((market) => market.exchange))];
      for (const exchange of exchanges) {
        const options = markets
          .filter((market) => market.exchange === exchange)
          .map((market) => new Option(market.symbol, marketName(market)));
        if (exchanges.length === 1) {
          select.append(...options);
        } else {
          const group = Object.assign(document.createElement("optgroup"), { label: exchange });
          group.append(...options);
          select.append(group);
        }
      }
      select.addEventListener("change", () => {
        const market = markets.find((candidate) => marketName(candidate) === select.value);
        this.choose({ market, interval: this.choice.interval });
      });
      intervals.forEach((interval) => this.addInterval(interval));
    }

    addInterval(interval) {
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "interval", value: interval });
      input.addEventListener("change", () => this.choose({ market: this.choice.market, interval }));
      const text = Object.assign(document.createElement("span"), { textContent: interval });
      const label = document.createElement("label");
      label.append(input, text);
      byId("intervals").append(label);
    }

    choose(choice) {
      this.link.send({ type: "unsubscribe", ...topic(this.choice) });
      this.choice = choice;
      this.settle();
      this.subscribe();
    }

    /** Bring selectors, URL and chart in line with the choice. */
    settle() {
      const { market, interval, unknown } = this.choice;
      byId("market").value = marketName(market);
      byId("intervals").querySelector(`input[value="${interval}"]`).checked = true;
      writeHash(this.choice);
      document.title = `${market.symbol} ${interval} · candled`;
      this.tellProblem(unknown ? `${unknown} is not served here; this is ${marketName(market)}.` : null);
      this.view.clear(this.choice);
    }

    subscribe() {
      if (!this.link.isOpen) return;
      this.heardMs = 0;
      this.tellState("connecting", "Waiting for candles…");
      this.link.send({ type: "subscribe", ...topic(this.choice), initialBars: INITIAL_BARS });
    }

    take(message) {
      if (message.type === "error") return this.tellProblem(message.message);
      if (!isAbout(message, this.choice)) return undefined;
      if (message.type === "initial") this.initial(message.bars);
      else if (message.type === "update") this.view.update(message.bar);
      else return undefined;
      this.heardMs = Date.now();
      document.title = `${byId("price").textContent} ${this.choice.market.symbol} · candled`;
      return this.tellState("live", "Live");
    }

    initial(bars) {
      this.view.initial(JSON.stringify(topic(this.choice)), bars);
      if (!this.choice.unknown) this.tellProblem(null);
    }

    tellLink(state, seconds) {
      this.heardMs = 0;
      if (state === "connecting") this.tellState("connecting", "Connecting…");
      else this.tellState("lost", "Connection lost, trying again", ` in ${seconds} s`);
    }

    /** A connection that is up but brings nothing must not look live. */
    tellQuiet() {
      const quietMs = Date.now() - this.heardMs;
      if (this.heardMs && quietMs > QUIET_AFTER_MS) {
        this.tellState("connecting", "Connected, no change", ` for ${Math.floor(quietMs / 1000)} s`);
      }
    }

    /** `more` changes every second and is not read aloud. */
    tellState(state, text, more = "") {
      byId("state").dataset.state = state;
      byId("state-more").textContent = more;
      if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
    }

    tellProblem(text) {
      byId("problem").hidden = text === null;
      byId("problem-text").textContent = text ?? "";
    }
  }

  if (!markets.length) {
    byId("state-text").textContent = "No market is configured";
    return;
  }
  const page = new Page();
  /** For the browser's console: the bars as they are drawn. */
  window.candled = { bars: () => page.view.candles.data() };
})();
