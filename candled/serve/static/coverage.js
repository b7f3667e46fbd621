/** The coverage of a market: the stored minutes by day, and the gaps with their reasons. */
import { marketName } from "./markets.js";
import { countText, reasonText, shareText, timeText } from "./words.js";

const DAYS = 92; // the most in one answer
const DAY_MS = 86400000;
const MOST_GAPS = 200;
const byId = (id) => document.getElementById(id);

export class CoverageView {
  #shown = 0; // counts requests, so that a late answer for another market is not drawn
  #days = new Map();
  #chosen = null;

  constructor() {
    byId("months").addEventListener("click", ({ target }) => target.dataset.day && this.#choose(target.dataset.day));
    byId("months").addEventListener("keydown", (event) => this.#key(event));
  }

  async show(market) {
    const number = (this.#shown += 1);
    byId("coverage-market").textContent = marketName(market);
    this.#showSummary("Loading…");
    this.#clear();
    try {
      const coverage = await fetchCoverage(market);
      if (number === this.#shown) this.#draw(coverage);
    } catch (error) {
      if (number === this.#shown) this.#showSummary(error.message);
    }
  }

  #clear() {
    this.#chosen = null;
    for (const id of ["months", "day", "holes"]) byId(id).replaceChildren();
  }

  #draw({ completeFrom, days }) {
    this.#days = new Map(days.map((day) => [day.day, day]));
    if (!days.length) {
      this.#showSummary("No history is complete yet.");
      return;
    }
    const [stored, expected] = ["minutes", "expected"].map((key) => days.reduce((sum, day) => sum + day[key], 0));
    const count = days.reduce((sum, day) => sum + day.holeCount, 0);
    const isCut = days[0].day > completeFrom.slice(0, 10);
    const span = isCut ? `of the last ${days.length} days` : `since ${timeText(completeFrom)}`;
    const all = `${stored.toLocaleString("en-US")} of ${countText(expected, "minute")}`;
    this.#showSummary(`${all} ${span} (${shareText(stored / expected)}), ${count ? countText(count, "gap") : "no gaps"}.`);
    byId("months").replaceChildren(...months(days).reverse().map((month) => this.#month(month)));
    this.#list(days);
    this.#choose(days.findLast((day) => day.holeCount)?.day ?? days.at(-1).day);
  }

  #month(first) {
    const block = make("div", "month", make("h3", "", monthName(first)));
    const grid = make("div", "grid");
    grid.setAttribute("role", "grid");
    grid.setAttribute("aria-label", monthName(first));
    const date = new Date(`${first}T00:00:00Z`);
    const month = date.getUTCMonth();
    for (; date.getUTCMonth() === month; date.setTime(date.getTime() + DAY_MS)) {
      grid.append(this.#cell(date.toISOString().slice(0, 10), ((date.getUTCDay() + 6) % 7) + 1));
    }
    block.append(grid);
    return block;
  }

  #cell(name, weekday) {
    const day = this.#days.get(name);
    const cell = make(day ? "button" : "span", "cell", String(Number(name.slice(8))));
    cell.style.gridColumn = weekday;
    cell.dataset.level = name > [...this.#days.keys()].at(-1) ? "later" : level(day);
    if (!day) return cell;
    Object.assign(cell, { type: "button", tabIndex: -1 });
    cell.dataset.day = name;
    cell.setAttribute("aria-label", `${name}: ${inWords(day)}`);
    cell.title = `${name}: ${inWords(day)}`;
    return cell;
  }

  #choose(name, { focus = false } = {}) {
    const day = this.#days.get(name);
    if (!day) return;
    this.#chosen = name;
    for (const cell of byId("months").querySelectorAll("button")) {
      const isChosen = cell.dataset.day === name;
      cell.tabIndex = isChosen ? 0 : -1;
      cell.setAttribute("aria-pressed", isChosen);
      if (isChosen && focus) cell.focus();
    }
    const parts = [make("h3", "", name), make("p", "", `${inWords(day)}.`)];
    if (day.holes.length) parts.push(gapList(day.holes));
    const more = day.holeCount - day.holes.length;
    if (more > 0) parts.push(make("p", "", `and ${countText(more, "more gap")}`));
    byId("day").replaceChildren(...parts);
  }

  /** Move between days: left and right by a day, up and down by a week. */
  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -7, ArrowDown: 7 };
    const names = [...this.#days.keys()];
    const at = names.indexOf(this.#chosen);
    const to = { Home: 0, End: names.length - 1 }[event.key] ?? at + (steps[event.key] ?? NaN);
    if (!(to >= 0 && to < names.length)) return;
    event.preventDefault();
    event.stopPropagation();
    this.#choose(names[to], { focus: true });
  }

  /** Show all gaps, newest first. */
  #list(days) {
    const holes = days.flatMap((day) => day.holes).reverse();
    if (!holes.length) return;
    const parts = [make("h3", "", "All gaps, newest first"), gapList(holes.slice(0, MOST_GAPS))];
    if (holes.length > MOST_GAPS) parts.push(make("p", "", `and ${holes.length - MOST_GAPS} more`));
    byId("holes").replaceChildren(...parts);
  }

  #showSummary(text) {
    byId("coverage-summary").textContent = text;
  }
}

async function fetchCoverage({ exchange, symbol }) {
  const today = Math.floor(Date.now() / DAY_MS);
  const from = new Date((today - DAYS + 1) * DAY_MS).toISOString();
  const query = new URLSearchParams({ symbol, exchange, from });
  const token = new URLSearchParams(location.search).get("token");
  if (token) query.set("token", token);
  let answer;
  try {
    answer = await fetch(`api/coverage?${query}`);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.ok) return answer.json();
  const wait = answer.headers.get("Retry-After");
  if (answer.status === 429) throw new Error(`Too many requests: try again in ${countText(Number(wait), "second")}.`);
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server answered ${answer.status}.`);
}

/** Return the first day of each month that contains one of the days. */
function months(days) {
  return [...new Set(days.map(({ day }) => `${day.slice(0, 7)}-01`))];
}

function monthName(first) {
  return new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" }).format(new Date(first));
}

function level(day) {
  if (!day) return "none";
  if (day.minutes === day.expected) return "full";
  const missing = day.expected - day.minutes - quietMinutes(day);
  if (missing <= 0) return "calm";
  return missing * 2 < day.expected ? "some" : "few";
}

/**
 * Return the number of minutes known to be without trades: these are not missing.
 *
 * If a day has very many gaps, only some are listed; if all of those are quiet, the others count as quiet too.
 */
function quietMinutes({ holes, minutes, expected, holeCount }) {
  const quiet = holes.filter(({ reason }) => reason === "no_trades");
  if (quiet.length === holes.length && holeCount > holes.length) return expected - minutes;
  return quiet.reduce((sum, hole) => sum + hole.minutes, 0);
}

function inWords({ minutes, expected, holeCount }) {
  const count = holeCount ? `, ${countText(holeCount, "gap")}` : "";
  if (minutes === expected) return expected === 1440 ? "complete" : `complete, ${countText(expected, "minute")} so far`;
  return `${minutes.toLocaleString("en-US")} of ${countText(expected, "minute")}${count}`;
}

function gapList(holes) {
  const list = make("ul", "list");
  for (const { from, to, minutes, reason } of holes) {
    const until = to.slice(0, 10) === from.slice(0, 10) ? to.slice(11, 16) : timeText(to);
    const item = make("li", "", make("span", "when", `${timeText(from)} – ${until}`));
    item.append(make("span", "long", countText(minutes, "minute")), make("span", "why", reasonText(reason)));
    list.append(item);
  }
  return list;
}

function make(tag, className, ...content) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...content);
  return element;
}
