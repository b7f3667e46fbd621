// Uses the TradingView datafeed as the Charting Library does, told by lines of JSON on standard input.
//
// The library itself is not public. What it is known to do: resolve, ask for bars back from now until there are enough
// or none, subscribe, refuse a tick older than its last bar, and end a subscription some ten seconds after it began
// the next one (here: `endAfterMs`). On `onResetCacheNeededCallback` it forgets what it holds; with
// `chart.resetData()` it asks for it again.
import { createInterface } from "node:readline";
import { CandledDatafeed } from "../../clients/js/tradingview.js";

const [base, options] = process.argv.slice(2);
const { endAfterMs, ...timings } = JSON.parse(options);
const say = (name, event, facts) => console.log(JSON.stringify({ name, event, facts }));
const onReset = (guid) => guid === charts.get(guid).guid && charts.get(guid).resetData(); // not of one that ends soon
const datafeed = new CandledDatafeed(base, { ...timings, onReset });
const charts = new Map(); // by listenerGuid
let count = 0;
let isOver = false;

class Chart {
  async show(symbol, resolution) {
    const late = this.guid;
    if (late) setTimeout(() => datafeed.unsubscribeBars(late), endAfterMs);
    this.info = await new Promise((resolve, reject) => datafeed.resolveSymbol(symbol, resolve, reject));
    this.resolution = resolution;
    this.guid = `chart ${(count += 1)}`;
    charts.set(this.guid, this);
    await this.load(true);
    const { guid } = this;
    const onTick = (bar) => guid === this.guid && this.tick(bar);
    if (isOver) return;
    datafeed.subscribeBars(this.info, resolution, onTick, guid, () => guid === this.guid && this.forget());
    say(this.name, "shown", [{ info: this.info, bars: this.bars, noData: this.noData }]);
  }

  async load(isFirst, countBack = 50) {
    const to = isFirst ? Math.ceil(Date.now() / 1000) + 10 ** 8 : this.bars[0].time / 1000;
    const period = { from: to - 1, to, countBack, firstDataRequest: isFirst };
    const [bars, { noData }] = await new Promise((resolve, reject) =>
      datafeed.getBars(this.info, this.resolution, period, (...answer) => resolve(answer), reject),
    );
    this.bars = isFirst ? bars : bars.concat(this.bars);
    this.noData = noData;
    return bars.length;
  }

  tick(bar) {
    const last = this.bars.at(-1);
    if (last && bar.time < last.time) say(this.name, "violation", [{ last: last.time, tick: bar.time }]);
    if (last?.time === bar.time) this.bars.pop();
    this.bars.push(bar);
    say(this.name, "tick", [bar]);
  }

  forget() {
    say(this.name, "reset", []);
  }

  /** As the library does it: the bars are asked for again, and the subscription begins anew. */
  async resetData() {
    await this.show(this.info.ticker, this.resolution).catch((error) => isOver || say(this.name, "failed", [String(error)]));
  }
}

const panes = new Map();
const actions = {
  ready: () => datafeed.onReady((configuration) => say("", "ready", [configuration])),
  search: ({ input, exchange = "" }) => datafeed.searchSymbols(input, exchange, "", (found) => say("", "found", [found])),
  time: () => datafeed.getServerTime((seconds) => say("", "time", [seconds])),
  show: async ({ name, symbol, resolution }) => {
    if (!panes.has(name)) panes.set(name, Object.assign(new Chart(), { name }));
    await panes.get(name).show(symbol, resolution);
  },
  scroll: async ({ name, countBack }) => {
    const chart = panes.get(name);
    const added = await chart.load(false, countBack);
    say(name, "scrolled", [{ added, noData: chart.noData }]);
  },
  report: ({ name }) => say(name, "report", [{ bars: panes.get(name).bars }]),
};

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const command = JSON.parse(line);
    try {
      await actions[command.do](command);
    } catch (error) {
      say(command.name ?? "", "failed", [String(error.message ?? error)]);
    }
  })
  .on("close", () => {
    isOver = true;
    datafeed.close();
  });
