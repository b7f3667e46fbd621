/** The page: the chart or the coverage of one market, with candled's own JavaScript client. */
import { CandledClient } from "../clients/candled.js";
import { ChartView } from "./chart.js";
import { CoverageView } from "./coverage.js";
import { defaultExchange, exchangeLabel, intervals, isSimulated, marketName, markets, readHash, version, writeHash } from "./markets.js";
import { Search } from "./search.js";
import { STATES, STATE_REASONS, timeText } from "./words.js";

const INITIAL_BARS = 500;
const byId = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.choice = readHash();
    this.stream = null;
    this.chart = new ChartView();
    this.coverage = new CoverageView();
    this.search = new Search((market) => this.choose({ market }));
    this.client = new CandledClient(socketUrl(), { defaultExchange });
    this.prepare();
    this.showChoice();
    this.subscribe();
  }

  prepare() {
    byId("version").textContent = `candled ${version}`;
    intervals.forEach((interval) => addInterval(interval, () => this.choose({ interval })));
    for (const input of byId("views").querySelectorAll("input")) {
      input.addEventListener("change", () => this.choose({ view: input.value }));
    }
    byId("market").addEventListener("click", () => this.search.open(this.choice.market));
    byId("help").addEventListener("click", () => byId("keys").showModal());
    byId("theme").addEventListener("click", () => this.turnTheme());
    byId("problem-close").addEventListener("click", () => showProblem(null));
    addEventListener("hashchange", () => this.choose(readHash()));
    addEventListener("keydown", (event) => this.key(event));
    setInterval(() => this.showStatus(), 1000);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.chart.paint());
    this.setTheme(rememberedTheme());
  }

  /** Apply a choice: a market, an interval, a view, or several of them. */
  choose(change) {
    const before = this.choice;
    this.choice = { ...before, unknown: null, ...change };
    const isSame = before.market === this.choice.market && before.interval === this.choice.interval;
    this.showChoice();
    if (!isSame) this.subscribe();
  }

  /** Update buttons, address and views to the choice. */
  showChoice() {
    const { market, interval, view, unknown } = this.choice;
    byId("market-symbol").textContent = market.symbol;
    byId("market-exchange").textContent = exchangeLabel(market);
    byId("simulated").hidden = !isSimulated(market);
    byId("market").dataset.name = marketName(market);
    byId("intervals").querySelector(`input[value="${interval}"]`).checked = true;
    byId("views").querySelector(`input[value="${view}"]`).checked = true;
    for (const name of ["chart", "coverage"]) byId(`${name}-view`).hidden = name !== view;
    byId("intervals").hidden = view !== "chart";
    writeHash(this.choice);
    showProblem(unknown ? `${unknown} is not served here; this is ${marketName(market)}.` : null);
    if (view === "coverage") this.coverage.show(market);
  }

  subscribe() {
    this.stream?.unsubscribe();
    const { market, interval } = this.choice;
    const draw = this.chart.listeners();
    this.stream = this.client.subscribe(
      { symbol: market.symbol, exchange: market.exchange, interval, bars: INITIAL_BARS },
      {
        onBars: (...values) => {
          if (!this.choice.unknown) showProblem(null);
          this.redraw(draw.onBars, values);
        },
        onBar: (...values) => this.redraw(draw.onBar, values),
        onCorrection: (...values) => this.redraw(draw.onCorrection, values),
        onStatus: () => this.showStatus(),
        onError: (error) => showProblem(error.message),
      },
    );
    this.chart.watch(this.stream, this.choice);
    this.showStatus();
    this.showTitle();
  }

  redraw(draw, values) {
    draw(...values);
    this.showTitle();
  }

  showTitle() {
    const { market, interval } = this.choice;
    document.title = `${this.stream.bar ? this.chart.price : interval} ${market.symbol} · candled`;
  }

  /** Show the state in words. The part that changes every second is not announced by screen readers. */
  showStatus() {
    const { state, since, reason, retryAt, message } = this.stream.status;
    const [text, meaning] = STATES[state] ?? STATES.stale;
    const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    const isOld = since && !["live", "closed"].includes(state);
    const more = state === "lost" ? ` in ${seconds} s` : isOld ? ` since ${sinceText(since)}` : "";
    byId("state").dataset.state = document.body.dataset.state = state;
    byId("state").title = message ?? [meaning, STATE_REASONS[reason]].filter(Boolean).join(" ");
    byId("state-more").textContent = more;
    if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  }

  /** Handle keys that work with any focus. Keys with modifiers are left to the browser. */
  key(event) {
    const isTyping = event.target.closest("dialog");
    if (event.ctrlKey || event.altKey || event.metaKey || isTyping) return;
    if (!this.pageKey(event.key) && !this.chartKey(event)) return;
    event.preventDefault();
  }

  pageKey(name) {
    const at = intervals.indexOf(this.choice.interval);
    const isChart = this.choice.view === "chart";
    const toInterval = (to) => isChart && intervals[to] && this.choose({ interval: intervals[to] });
    const actions = {
      "/": () => this.search.open(this.choice.market),
      "?": () => byId("keys").showModal(),
      "[": () => toInterval(at - 1),
      "]": () => toInterval(at + 1),
      c: () => this.choose({ view: isChart ? "coverage" : "chart" }),
      t: () => this.turnTheme(),
    };
    if (/^[1-9]$/.test(name)) toInterval(Number(name) - 1);
    else if (name in actions) actions[name]();
    else return false;
    return true;
  }

  /** Handle the chart's keys, except arrows while radio buttons have the focus. */
  chartKey(event) {
    const isElsewhere = event.target.closest("input, button") && event.key.startsWith("Arrow");
    return this.choice.view === "chart" && !isElsewhere && this.chart.key(event.key);
  }

  turnTheme() {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const theme = (document.documentElement.dataset.theme ?? system) === "dark" ? "light" : "dark";
    this.setTheme(theme);
    remember(theme);
  }

  setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    this.chart.paint();
  }
}

function addInterval(interval, choose) {
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "interval", value: interval });
  input.addEventListener("change", choose);
  const label = document.createElement("label");
  label.append(input, Object.assign(document.createElement("span"), { textContent: interval }));
  byId("intervals").append(label);
}

function showProblem(text) {
  byId("problem").hidden = text === null;
  byId("problem-text").textContent = text ?? "";
}

/** Return a time, without the date if it is today's. */
function sinceText(time) {
  return time.slice(0, 10) === new Date().toISOString().slice(0, 10) ? time.slice(11, 16) : timeText(time);
}

function rememberedTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // storage may be disabled
  }
}

function remember(theme) {
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // the choice lasts until the page is reloaded
  }
}

function socketUrl() {
  const url = new URL("ws", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  const token = new URLSearchParams(location.search).get("token");
  url.search = token ? new URLSearchParams({ token }) : "";
  return url.href;
}

if (markets.length) {
  const page = new Page();
  /** For the browser's console: the drawn bars. */
  window.candled = { bars: () => page.chart.candles.data() };
} else {
  byId("state-text").textContent = "No market is configured";
}
