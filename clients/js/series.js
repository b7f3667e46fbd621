/** The bars of one stream, oldest first and each once. Pure: messages in, changes out. */

/**
 * Times are compared as text, because ISO 8601 with milliseconds and `Z` sorts by time.
 *
 * The methods return a change:
 * - `{ reason, changed }` if more than the newest bar changed. The reason is `initial`, `resumed`, `history` or
 *   `inserted`; `changed` are the new and changed bars.
 * - `{ bar, isNew }` if the newest bar changed or the next one opened.
 * - `{ bar, isOld: true }` if an older bar was revised.
 * - null if no bar changed.
 */
export class Series {
  #bars = [];
  #shown = null;
  #finalThrough = "";

  /** Keep at most `keep` bars, plus those loaded from history. */
  constructor(keep = Infinity) {
    this.keep = keep;
  }

  /** The bars. The array is frozen, and replaced when a bar changes. */
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

  /** Apply an `initial`, which replaces all bars. */
  replace(bars) {
    const before = new Map(this.#bars.map((bar) => [bar.time, bar]));
    const isFirst = this.#finalThrough === "";
    this.#bars = ascending(bars);
    this.#shown = null;
    if (isFirst) this.#finalThrough = this.#newestOver();
    return { reason: "initial", changed: this.#bars.filter((bar) => !isSame(before.get(bar.time), bar)) };
  }

  /** Apply the bars of `resumed`: those that changed while the connection was lost. */
  merge(bars) {
    const changed = ascending(bars).filter((bar) => this.#put(bar) !== null);
    return { reason: "resumed", changed };
  }

  /** Apply an `update`. A bar older than the newest is ignored, because time does not run backwards. */
  update(bar) {
    if (this.last && bar.time < this.last.time) return null;
    return this.#change(bar, this.#put(bar));
  }

  /** Apply a `correction`, which revises an older bar. */
  correct(bar) {
    return this.#change(bar, this.#put(bar));
  }

  /** Add a page of history. Bars that are not older than the first one are ignored. */
  prepend(bars) {
    const older = ascending(bars).filter((bar) => !this.first || bar.time < this.first.time);
    this.#bars = older.concat(this.#bars);
    this.#shown = null;
    this.keep += older.length;
    return { reason: "history", changed: older };
  }

  /** Return the bars that became final since the last call, oldest first, each bar once. */
  takeFinal() {
    const found = [];
    let at = this.#bars.length;
    while (at > 0 && this.#bars[at - 1].time > this.#finalThrough) at -= 1;
    for (; at < this.#bars.length && this.#isOver(at); at += 1) found.push(this.#bars[at]);
    if (found.length) this.#finalThrough = found.at(-1).time;
    return found;
  }

  /** Drop the oldest bars above `keep`, many at a time; return true if any were dropped. */
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

  /** Put a bar at its time; return the kind of change, or null. */
  #put(bar) {
    const at = this.#indexOf(bar.time);
    const known = this.#bars[at];
    if (known?.time === bar.time) {
      if (isSame(known, bar)) return null;
      this.#bars[at] = bar;
      this.#shown = null;
      return at === this.#bars.length - 1 ? "moved" : "old";
    }
    if (at === 0 && this.#bars.length) return null; // older than all bars in memory
    this.#bars.splice(at, 0, bar);
    this.#shown = null;
    return at === this.#bars.length - 1 ? "opened" : "inserted";
  }

  /** Return the index of the first bar that is not older than `time`. It is mostly at the end, so look there first. */
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

  /** Return true if a bar is over. If the server does not send `final`, it is over when the next one exists. */
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

/** Return the bars without those that run backwards, which no server should send. */
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
