/** A small chart of the last hour. */
import { make, setText } from "./status-dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [360, 60];

export class LineChart {
  #values = [];
  #everySeconds = 10;
  #at = null; // the index under the pointer

  constructor(parent, title, text) {
    this.text = text;
    this.output = make("span", "value", "–");
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.area = shape("path", { class: "area" });
    this.line = shape("path", { class: "line" });
    this.pointer = shape("line", { class: "pointer", y1: 0, y2: HEIGHT });
    this.pointer.style.display = "none";
    this.svg.append(shape("line", { class: "rule", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), this.area, this.line, this.pointer);
    this.ends = [make("span", "", "1 h ago"), make("span", ""), make("span", "", "now")];
    parent.append(make("figure", "chart-card", make("figcaption", "", make("span", "", title), this.output), this.svg, make("div", "ends", ...this.ends)));
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#show(null));
  }

  draw(values, everySeconds) {
    this.#everySeconds = everySeconds;
    const count = Math.round(3600 / everySeconds);
    this.#values = [...Array(Math.max(0, count - values.length)).fill(null), ...values.slice(-count)];
    const known = this.#values.filter((value) => value !== null);
    const most = niceCeiling(Math.max(0, ...known));
    const x = (index) => ((index + 1) / count) * WIDTH;
    const y = (value) => HEIGHT - (value / most) * (HEIGHT - 2);
    let [line, area] = ["", ""];
    for (const [first, part] of parts(this.#values)) {
      const points = part.map((value, index) => `${x(first + index).toFixed(1)},${y(value).toFixed(1)}`);
      if (points.length === 1) points.unshift(`${x(first - 1).toFixed(1)},${y(part[0]).toFixed(1)}`);
      line += `M${points.join("L")}`;
      area += `M${points[0].split(",")[0]},${HEIGHT}L${points.join("L")}V${HEIGHT}Z`;
    }
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
    setText(this.ends[1], known.length ? `largest ${this.text(Math.max(...known))}` : "");
    this.#show(this.#at);
  }

  #point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    this.#show(Math.min(this.#values.length - 1, Math.max(0, Math.floor(share * this.#values.length))));
  }

  /** Show the value under the pointer, or the newest. */
  #show(at) {
    this.#at = at;
    const value = at === null ? this.#values.at(-1) : this.#values[at];
    const ago = at === null ? "" : ` · ${Math.round(((this.#values.length - 1 - at) * this.#everySeconds) / 60)} min ago`;
    setText(this.output, value === null || value === undefined ? `–${ago}` : this.text(value) + ago);
    this.pointer.style.display = at === null ? "none" : "";
    const x = at === null ? 0 : ((at + 1) / this.#values.length) * WIDTH;
    for (const end of ["x1", "x2"]) this.pointer.setAttribute(end, x);
  }
}

/** Yield the parts without unknown values, each with its first index. */
function* parts(values) {
  let part = [];
  for (const [index, value] of [...values, null].entries()) {
    if (value !== null) part.push(value);
    else if (part.length) {
      yield [index - part.length, part];
      part = [];
    }
  }
}

function niceCeiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
