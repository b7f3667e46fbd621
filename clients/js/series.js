/** The bars of one stream, oldest first and each once. Pure: messages in, what changed out. */

/**
 * Times are compared as the texts they are: ISO 8601 with milliseconds and `Z` sorts as time does.
 *
 * A change is `{ reason, changed }` when more than the newest bar is concerned, with reason `initial`, `resumed`,
 * `history` or `inserted` and the bars that are new or differ; `{ bar, isNew }` when the newest bar moved or the
 * next one opened; `{ bar, isOld: true }` when an older one was revised where it stands; null when nothing changed.
 */
export class Series {
  #bars = [];
  #shown = null;
  #finalThrough = "";

  /** At most `keep` bars that came live are held; what was loaded from history is held beside them. */
  constructor(keep = Infinity) {
    this.keep = keep;
  }

  /** The bars; the same array until one of them changes, and never changed itself. */
  get bars() {
    this.#shown ??= Object.freeze(this.#bars.slice());
    return this.#shown;
  }

  get first() {
    return this.#bars[0];
  }

  get last() {
    return this.#bars.at(-1);
  }

  /** Take an `initial`: it replaces everything. */
  replace(bars) {
    const before = new Map(this.#bars.map((bar) => [bar.time, bar]));
    const isFirst = this.#finalThrough === "";
    this.#bars = ascending(bars);
    this.#shown = null;
    if (isFirst) this.#finalThrough = this.#newestOver();
    return { reason: "initial", changed: this.#bars.filter((bar) => !isSame(before.get(bar.time), bar)) };
  }

  /** Take the bars of `resumed`: those that changed while the link was down. */
  merge(bars) {
    const changed = ascending(bars).filter((bar) => this.#put(bar) !== null);
    return { reason: "resumed", changed };
  }

  /** Take an `update`. A bar older than the newest is not drawn: time does not run backwards. */
  update(bar) {
    if (this.last && bar.time < this.last.time) return null;
    return this.#change(bar, this.#put(bar));
  }

  /** Take a `correction`: an older bar is revised where it stands. */
  correct(bar) {
    return this.#change(bar, this.#put(bar));
  }

  /** Take a page of history; only what is older than the first bar is new. */
  prepend(bars) {
    const older = ascending(bars).filter((bar) => !this.first || bar.time < this.first.time);
    this.#bars = older.concat(this.#bars);
    this.#shown = null;
    this.keep += older.length;
    return { reason: "history", changed: older };
  }

  /** The bars that became final since this was last asked, oldest first, each bar once. */
  takeFinal() {
    const found = [];
    let at = this.#bars.length;
    while (at > 0 && this.#bars[at - 1].time > this.#finalThrough) at -= 1;
    for (; at < this.#bars.length && this.#isOver(at); at += 1) found.push(this.#bars[at]);
    if (found.length) this.#finalThrough = found.at(-1).time;
    return found;
  }

  /** Forget the oldest bars above `keep`; whether there were any. Done in strides, not with every bar. */
  trim() {
    if (this.#bars.length <= this.keep * 1.1 + 1) return false;
    this.#bars = this.#bars.slice(-this.keep);
    this.#shown = null;
    return true;
  }

  #change(bar, how) {
    if (how === "inserted") return { reason: "inserted", changed: [bar] };
    if (how === "old") return { bar, isOld: true };
    return how === null ? null : { bar, isNew: how === "opened" };
  }

  /** Put a bar where its time says; how that changed the series, or null. */
  #put(bar) {
    const at = this.#indexOf(bar.time);
    const held = this.#bars[at];
    if (held?.time === bar.time) {
      if (isSame(held, bar)) return null;
      this.#bars[at] = bar;
      this.#shown = null;
      return at === this.#bars.length - 1 ? "moved" : "old";
    }
    if (at === 0 && this.#bars.length) return null; // older than what is held
    this.#bars.splice(at, 0, bar);
    this.#shown = null;
    return at === this.#bars.length - 1 ? "opened" : "inserted";
  }

  /** The place of the first bar that is not older than `time`; looked for from the end, where it mostly is. */
  #indexOf(time) {
    let [low, high] = [0, this.#bars.length];
    if (high && this.#bars[high - 1].time < time) return high;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#bars[middle].time < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** A server that does not say `final` has ended a bar when it opens the next. */
  #isOver(at) {
    return this.#bars[at].final ?? at < this.#bars.length - 1;
  }

  #newestOver() {
    for (let at = this.#bars.length - 1; at >= 0; at -= 1) {
      if (this.#isOver(at)) return this.#bars[at].time;
    }
    return this.#bars.length ? " " : ""; // sorts before every time
  }
}

/** The bars without those that would run backwards, which no server should send. */
function ascending(bars) {
  const kept = [];
  for (const bar of bars) {
    if (!kept.length || bar.time > kept.at(-1).time) kept.push(bar);
  }
  return kept;
}

function isSame(one, other) {
  return (
    one !== undefined &&
    ["open", "high", "low", "close", "volume", "quoteVolume", "final", "rev", "src"].every((key) => one[key] === other[key])
  );
}
