/** The table of all markets: filtered, sorted, the worst first. */
import { ageText, make, setText } from "./status-dom.js";
import { countText, reasonText, STATES, STATE_REASONS } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const STEP = 100; // rows that are shown first, and in addition with each press
const BAD = ["stale", "recovering", "warming", "polling", "quiet", "live"]; // the worst first
const NOT_TRADED = ["not_listed", "not_open", "suspended", "delisted"];
const LEVELS = { f: "complete", q: "complete, some minutes without trades", s: "some minutes missing", m: "most minutes missing", n: "not stored" };
const byId = (id) => document.getElementById(id);

export class MarketTable {
  #rows = new Map(); // the elements of the markets that are shown, by name
  #markets = [];
  #state = null;
  #sort = { by: "state", descending: false };
  #most = STEP;

  constructor(hasChart) {
    this.hasChart = hasChart;
    this.body = byId("markets").tBodies[0];
    byId("filter").addEventListener("input", () => this.#restart());
    byId("more").addEventListener("click", () => {
      this.#most += STEP;
      this.#draw();
    });
    byId("states").addEventListener("click", ({ target }) => {
      const state = target.closest("button")?.dataset.state;
      if (state) this.#restart({ state: this.#state === state ? null : state });
    });
    for (const head of byId("markets").querySelectorAll("th[data-sort]")) {
      head.querySelector("button").addEventListener("click", () => this.#sortBy(head.dataset.sort));
    }
  }

  show(markets, defaultExchange) {
    this.defaultExchange = defaultExchange;
    this.#markets = markets;
    byId("markets").classList.toggle("no-days", markets.length > 0 && markets.every(({ days }) => days === undefined));
    this.#draw();
  }

  #restart({ state = this.#state } = {}) {
    this.#state = state;
    this.#most = STEP;
    this.#draw();
  }

  #sortBy(by) {
    const isSame = this.#sort.by === by;
    this.#sort = { by, descending: isSame && !this.#sort.descending };
    for (const head of byId("markets").querySelectorAll("th[data-sort]")) {
      if (head.dataset.sort === by) head.setAttribute("aria-sort", this.#sort.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    this.#restart();
  }

  #draw() {
    this.#drawStates();
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.#markets.filter((market) => {
      if (this.#state && market.state !== this.#state) return false;
      const text = `${market.exchange}:${market.symbol} ${market.symbol.replace(/[/:]/g, "")} ${describe(market)} ${Object.keys(market.gaps ?? {}).map(reasonText).join(" ")}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const sign = this.#sort.descending ? -1 : 1;
    found.sort((one, other) => sign * compare(this.#sort.by, one, other) || compare("name", one, other));
    const shown = found.slice(0, this.#most);
    this.#place(shown);
    const all = countText(this.#markets.length, "market");
    const count = found.length < this.#markets.length ? `${found.length} of ${all}` : all;
    setText(byId("count"), shown.length < found.length ? `${count}, ${shown.length} shown` : count);
    byId("more").hidden = shown.length === found.length;
  }

  #drawStates() {
    const counts = new Map(BAD.map((state) => [state, 0]));
    for (const { state } of this.#markets) counts.set(state, (counts.get(state) ?? 0) + 1);
    const parent = byId("states");
    for (const [state, count] of counts) {
      let button = [...parent.children].find((one) => one.dataset.state === state);
      if (!button) {
        button = make("button", "");
        Object.assign(button, { type: "button" });
        button.dataset.state = state;
        parent.append(button);
      }
      button.hidden = !count && this.#state !== state;
      button.setAttribute("aria-pressed", this.#state === state);
      setText(button, `${title(state)} ${count.toLocaleString("en-US")}`);
    }
  }

  /** Put the rows in order. A row whose market is shown already is changed in place. */
  #place(markets) {
    const kept = new Map();
    markets.forEach((market, index) => {
      const name = `${market.exchange}:${market.symbol}`;
      const row = this.#rows.get(name) ?? new MarketRow(market, this.#address(market));
      row.update(market);
      kept.set(name, row);
      if (this.body.children[index] !== row.element) this.body.insertBefore(row.element, this.body.children[index] ?? null);
    });
    this.#rows = kept;
    while (this.body.children.length > markets.length) this.body.lastElementChild.remove();
  }

  #address({ exchange, symbol }) {
    if (!this.hasChart) return null;
    return `./#${exchange === this.defaultExchange ? symbol : `${exchange}:${symbol}`}/1m/coverage`;
  }
}

class MarketRow {
  #drawn = ["", "", "", ""]; // the newest texts of the cells

  constructor({ exchange, symbol }, address) {
    const name = make(address ? "a" : "span", "name", symbol);
    if (address) name.href = address;
    this.cells = [make("td", "", name, make("span", "sub", exchange)), ...["State", "Last candle", "Gaps", "Last 92 days"].map((label) => {
      const cell = make("td", "");
      cell.dataset.label = label;
      return cell;
    })];
    this.element = make("tr", "", ...this.cells);
    this.element.setAttribute("role", "row");
    for (const cell of this.cells) cell.setAttribute("role", "cell");
  }

  update(market) {
    const { state, reason = "", error = "", lagMs, gaps = {}, days } = market;
    this.#change(0, `${state} ${reason} ${error}`, () => stateParts(market));
    this.#change(1, lagMs === undefined ? "–" : `${ageText(lagMs)} ago`);
    this.#change(2, JSON.stringify(gaps), () => gapParts(gaps));
    this.#change(3, days ?? "–", days && (() => [dayStrip(days)]));
  }

  #change(index, text, makeParts = () => [text]) {
    if (this.#drawn[index] === text) return;
    this.#drawn[index] = text;
    this.cells[index + 1].replaceChildren(...makeParts());
  }
}

function title(state) {
  return STATES[state]?.[0].replace("…", "") ?? state;
}

function describe({ state, reason, error }) {
  return [title(state), STATE_REASONS[reason] ?? reason ?? "", error ?? ""].filter(Boolean).join(" ");
}

function stateParts({ state, reason, error }) {
  const badge = make("span", "badge", title(state));
  badge.dataset.state = state;
  badge.title = STATES[state]?.[1] ?? "";
  const why = reason && reason !== "no_trades" ? make("span", "sub", STATE_REASONS[reason] ?? reason) : "";
  return [badge, why, error ? make("span", "sub", error) : ""].filter(Boolean);
}

function gapParts(gaps) {
  const all = Object.entries(gaps);
  if (!all.length) return ["none"];
  return all.map(([reason, minutes]) => make("span", reason === "missing" ? "sub warn" : "sub", `${countText(minutes, "minute")}: ${reasonText(reason)}`));
}

/** Draw a rectangle for each run of equal days. */
function dayStrip(days) {
  const runs = [...days.matchAll(/([a-z])(\d+)/g)].map(([, level, count]) => [level, Number(count)]);
  const total = runs.reduce((sum, [, count]) => sum + count, 0);
  const strip = document.createElementNS(SVG, "svg");
  const label = runs.map(([level, count]) => `${countText(count, "day")} ${LEVELS[level]}`).join(", ");
  for (const [key, value] of Object.entries({ class: "days", viewBox: `0 0 ${total} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label })) {
    strip.setAttribute(key, value);
  }
  const words = document.createElementNS(SVG, "title");
  words.textContent = `${label} (oldest first)`;
  strip.append(words);
  let at = 0;
  for (const [level, count] of runs) {
    const run = document.createElementNS(SVG, "rect");
    for (const [key, value] of Object.entries({ x: at, y: 0, width: count, height: 1 })) run.setAttribute(key, value);
    run.dataset.level = level;
    strip.append(run);
    at += count;
  }
  return strip;
}

function compare(by, one, other) {
  if (by === "state") return badness(one) - badness(other) || minutes(other) - minutes(one);
  if (by === "lag") return (other.lagMs ?? -1) - (one.lagMs ?? -1);
  if (by === "gaps") return minutes(other) - minutes(one) || all(other) - all(one);
  return one.exchange.localeCompare(other.exchange) || one.symbol.localeCompare(other.symbol);
}

/** A market that is not traded is no problem. */
function badness({ state, reason }) {
  const rank = BAD.indexOf(state);
  return NOT_TRADED.includes(reason) ? BAD.length : rank;
}

function minutes({ gaps }) {
  return (gaps?.missing ?? 0) + (gaps?.unconfirmed ?? 0) + (gaps?.invalid ?? 0);
}

function all({ gaps }) {
  return Object.values(gaps ?? {}).reduce((sum, count) => sum + count, 0);
}
