/** The dialog for finding a market by a few letters of its symbol or exchange. */
import { exchangeLabel, findMarkets, marketName } from "./markets.js";

const MOST_SHOWN = 100;
const byId = (id) => document.getElementById(id);

export class Search {
  #found = [];
  #at = 0;
  #choose;
  #current = null;

  /** `choose(market)` is called with the chosen market. */
  constructor(choose) {
    this.#choose = choose;
    const text = byId("search-text");
    text.addEventListener("input", () => this.#find());
    text.addEventListener("keydown", (event) => this.#key(event));
    byId("search-list").addEventListener("click", ({ target }) => {
      const item = target.closest("li");
      if (item) this.#pick(Number(item.dataset.at));
    });
    byId("search").addEventListener("click", ({ target }) => {
      if (target === byId("search")) byId("search").close(); // a click outside the dialog
    });
  }

  open(current) {
    this.#current = current;
    byId("search-text").value = "";
    byId("search").showModal();
    this.#find();
  }

  #find() {
    const text = byId("search-text").value;
    const all = findMarkets(text);
    this.#found = all.slice(0, MOST_SHOWN);
    this.#at = text ? 0 : Math.max(0, this.#found.indexOf(this.#current));
    byId("search-list").replaceChildren(...this.#found.map((market, at) => this.#item(market, at)));
    const more = all.length - this.#found.length;
    byId("search-more").textContent = all.length ? (more ? `and ${more} more` : "") : "No market fits";
    this.#mark();
  }

  #item(market, at) {
    const item = document.createElement("li");
    Object.assign(item, { id: `market-${at}`, role: "option" });
    item.dataset.at = at;
    item.dataset.name = marketName(market);
    item.append(span("symbol", market.symbol), span("exchange", exchangeLabel(market)));
    return item;
  }

  #mark() {
    for (const item of byId("search-list").children) {
      const isMarked = Number(item.dataset.at) === this.#at;
      item.setAttribute("aria-selected", isMarked);
      if (isMarked) item.scrollIntoView({ block: "nearest" });
    }
    byId("search-text").setAttribute("aria-activedescendant", this.#found.length ? `market-${this.#at}` : "");
  }

  #key(event) {
    const last = this.#found.length - 1;
    const moves = { ArrowDown: this.#at + 1, ArrowUp: this.#at - 1, PageDown: this.#at + 8, PageUp: this.#at - 8 };
    if (event.key === "Enter") this.#pick(this.#at);
    else if (event.key in moves) this.#at = Math.min(Math.max(moves[event.key], 0), Math.max(last, 0));
    else return;
    event.preventDefault();
    this.#mark();
  }

  #pick(at) {
    const market = this.#found[at];
    if (!market) return;
    byId("search").close();
    this.#choose(market);
  }
}

function span(className, textContent) {
  return Object.assign(document.createElement("span"), { className, textContent });
}
