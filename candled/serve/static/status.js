/** The status page: reads /status.json every two seconds, and shows it. */
import { MarketTable } from "./status-markets.js";
import { LineChart } from "./status-chart.js";
import { ageText, durationText, fill, make, setText } from "./status-dom.js";
import { countText, reasonText, shareText, STATES, timeText } from "./words.js";

const EVERY_MS = 2000;
const LATE_MS = 10000;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

const CHARTS = [
  ["messagesPerSecond", "Messages sent", (value) => `${number.format(value)}/s`],
  ["bytesPerSecond", "Bytes sent", (value) => `${bytesText(value)}/s`],
  ["candlesPerSecond", "Candles received", (value) => `${number.format(value)}/s`],
  ["clients", "Clients", (value) => number.format(value)],
  ["loopLagMs", "Loop delay, longest", (value) => (value < 1000 ? `${number.format(value)} ms` : `${number.format(value / 1000)} s`)],
];

class StatusPage {
  constructor() {
    this.charts = new Map();
    this.markets = new MarketTable(document.body.dataset.chart === "yes");
    this.answeredAt = null; // when the newest data arrived
    document.addEventListener("visibilitychange", () => document.hidden || this.read());
    applyTheme();
    this.read();
  }

  async read() {
    clearTimeout(this.timer);
    const reading = (this.reading = {});
    try {
      const status = await fetchStatus();
      if (reading !== this.reading) return; // a later one has begun
      this.answeredAt = Date.now();
      this.show(status);
    } catch (error) {
      if (reading !== this.reading) return;
      this.showLost(error.message);
    }
    if (!document.hidden) this.timer = setTimeout(() => this.read(), EVERY_MS);
  }

  show(status) {
    document.body.classList.remove("is-lost");
    byId("lost").hidden = true;
    const { problems, process, exchanges } = status;
    const worst = problems[0]?.severity ?? "well";
    showState(worst, problems.length ? countText(problems.length, "problem") : "All is well");
    showProblems(problems);
    showTiles(status);
    this.showCharts(status.lastHour);
    showExchanges(exchanges);
    showProcesses(status);
    showLeaders(status.bus);
    this.markets.show(status.markets, Object.keys(exchanges)[0]);
    setText(byId("version"), `candled ${process.version}`);
    setText(byId("process"), `${process.name ? `Process ${process.name}, ` : ""}${timeText(status.time)}:${status.time.slice(17, 19)}`);
  }

  showCharts({ everySeconds, ...lists }) {
    for (const [name, title, text] of CHARTS) {
      if (!lists[name]) continue;
      if (!this.charts.has(name)) this.charts.set(name, new LineChart(byId("charts"), title, text));
      this.charts.get(name).draw(lists[name], everySeconds);
    }
  }

  showLost(reason) {
    document.body.classList.add("is-lost");
    const since = this.answeredAt === null ? "" : ` What you see is ${ageText(Date.now() - this.answeredAt)} old.`;
    byId("lost").hidden = false;
    setText(byId("lost-text"), `${reason} It is asked again every two seconds.${since}`);
    showState("critical", "No answer");
  }
}

async function fetchStatus() {
  const token = new URLSearchParams(location.search).get("token");
  const query = token ? `?${new URLSearchParams({ token })}` : "";
  let answer;
  try {
    answer = await fetch(`status.json${query}`, { cache: "no-store", signal: AbortSignal.timeout(LATE_MS) });
  } catch {
    throw new Error("It has stopped, it is blocked, or the network is down.");
  }
  if (answer.status === 403) throw new Error("The token is not for all symbols.");
  if (!answer.ok) throw new Error(`It answers with the error ${answer.status}.`);
  return answer.json();
}

function applyTheme() {
  try {
    const theme = localStorage.getItem("theme"); // chosen on the chart page
    if (theme) document.documentElement.dataset.theme = theme;
  } catch {
    // storage is switched off
  }
}

function showState(state, text) {
  byId("state").dataset.state = state;
  setText(byId("state-text"), text);
}

function showProblems(problems) {
  const rows = problems.map(({ id, severity, text, subject }) => {
    const item = make("li", "", make("span", "text", subject ? make("strong", "", `${subject}: `) : "", text), make("code", "", id));
    item.dataset.severity = severity;
    return item;
  });
  if (!rows.length) rows.push(make("li", "well", "No problems. Every market is read as it should be."));
  fill(byId("problems"), rows); // an unchanged list is not announced again
}

function showTiles({ markets, clients, store, bus, process, lastHour }) {
  const counts = new Map();
  for (const { state } of markets) counts.set(state, (counts.get(state) ?? 0) + 1);
  const isWell = (counts.get("live") ?? 0) + (counts.get("quiet") ?? 0);
  const limit = clients.limit ? ` of ${number.format(clients.limit)}` : "";
  fill(byId("tiles"), [
    tile("Markets live or quiet", `${number.format(isWell)} of ${number.format(markets.length)}`, statesText(counts), isWell < markets.length && "warn"),
    tile("Clients", number.format(clients.connections) + limit, `${countText(clients.rooms, "room")}, ${countText(clients.subscriptions, "subscription")}${clients.slow ? `, ${clients.slow} slow` : ""}`),
    tile("Sent now", `${number.format(lastHour.messagesPerSecond.at(-1) ?? 0)}/s`, `messages, ${bytesText(lastHour.bytesPerSecond.at(-1) ?? 0)}/s; ${number.format(lastHour.requestsPerSecond.at(-1) ?? 0)}/s HTTP requests`),
    tile("Database", { ok: "OK", unavailable: "Unavailable", rejecting: "Refuses rows" }[store.state], storeText(store), store.state !== "ok" && "bad"),
    bus.kind === "memory" || tile("Redis", bus.connected ? "Connected" : "Not connected", bus.error ?? (bus.lagMs === null ? "" : `${number.format(bus.lagMs)} ms on the way`), !bus.connected && "bad"),
    tile(process.stopping ? "Stopping" : "Running for", durationText(process.uptimeSeconds), process.roles.join(" and "), process.stopping && "warn"),
  ].filter((one) => one !== true));
}

function tile(title, value, note, tone) {
  const one = make("div", "tile", make("span", "label", title), make("strong", "", value), make("p", "", note));
  if (tone) one.dataset.tone = tone;
  return one;
}

function bytesText(value) {
  const [unit, size] = [["MB", 1e6], ["kB", 1e3]].find(([, size]) => value >= size) ?? ["B", 1];
  return `${number.format(value / size)} ${unit}`;
}

function statesText(counts) {
  return [...counts].map(([state, count]) => `${number.format(count)} ${(STATES[state]?.[0] ?? state).toLowerCase()}`).join(", ");
}

function storeText({ kind, queuedRows, journal, error }) {
  if (error) return error;
  const waiting = queuedRows + (journal?.rows ?? 0);
  const share = journal?.rows ? `, journal ${shareText(Math.min(1, journal.bytes / journal.limit))} full` : "";
  return `${{ sqlite: "SQLite", postgresql: "PostgreSQL" }[kind] ?? kind}, ${waiting ? countText(waiting, "row waits", "rows wait") : "nothing waits"}${share}`;
}

function showExchanges(exchanges) {
  fill(byId("exchanges").tBodies[0], Object.entries(exchanges).map(([name, one]) => {
    const isRead = one.connectionsWanted !== undefined;
    const cells = [
      ["", make("span", "name", name), one.simulated ? make("span", "sub", "replay, not the present market") : ""],
      ["Markets", number.format(one.symbols), make("span", "sub", statesText(new Map(Object.entries(one.states))))],
      ["Stream", ...(isRead ? streamCells(one) : ["–"])],
      ["REST", ...(isRead ? restCells(one) : ["–"])],
      ["Request budget", ...(isRead ? budgetCells(one) : ["–"])],
      ["Parity, 24 h", ...(isRead ? parityCells(one) : ["–"])],
      ["Clock", isRead ? clockText(one.clockSkewMs) : "–"],
      ["Gaps", ...(isRead ? gapCells(one.gaps) : ["–"])],
    ];
    return row(cells);
  }));
}

function streamCells({ connections, connectionsWanted }) {
  const badge = make("span", "badge", `${connections} of ${connectionsWanted}`);
  badge.dataset.state = connections < connectionsWanted ? "bad" : "ok";
  return [badge, make("span", "sub", connections < connectionsWanted ? "does not answer" : "connected")];
}

function restCells({ restAvailable, unconfirmedMinutes }) {
  const badge = make("span", "badge", restAvailable ? "answers" : "does not answer");
  badge.dataset.state = restAvailable ? "ok" : "bad";
  return [badge, unconfirmedMinutes ? make("span", "sub", `${countText(unconfirmedMinutes, "minute")} to confirm`) : ""];
}

function budgetCells({ budgetLeft, pauseSeconds }) {
  const left = Math.max(0, Math.min(1, budgetLeft));
  const bar = make("i", "");
  bar.style.width = `${left * 100}%`;
  const pause = pauseSeconds > 0 ? make("span", "sub bad", `paused for ${durationText(pauseSeconds)}`) : "";
  return [`${Math.floor(left * 100)} % left`, make("span", left < 0.2 ? "meter warn" : "meter", bar), pause];
}

function parityCells({ parity, compared }) {
  if (parity === null) return ["–", make("span", "sub", "nothing compared yet")];
  return [make("span", parity < 0.9999 ? "warn" : "", shareText(parity)), make("span", "sub", `of ${countText(compared, "minute")}`)];
}

function clockText(skewMs) {
  if (Math.abs(skewMs) < 50) return "agrees";
  return `${number.format(Math.abs(skewMs) / 1000)} s ${skewMs > 0 ? "ahead" : "behind"}`;
}

function gapCells(gaps) {
  const all = Object.entries(gaps);
  if (!all.length) return ["none"];
  return all.map(([reason, { count, minutes }]) =>
    make("span", reason === "missing" ? "warn sub" : "sub", `${countText(minutes, "minute")} in ${countText(count, "gap")}: ${reasonText(reason)}`));
}

function showProcesses({ processes, bus, time }) {
  byId("processes").hidden = processes.length < 2;
  setText(byId("processes-title"), `Processes: ${number.format(processes.length)}`);
  fill(byId("process-rows").tBodies[0], processes.map(({ process, name, host, roles, clients, rooms, since, version, stopping }) => {
    const led = bus.shards.filter(({ leader }) => leader === process).map(({ shard }) => shard);
    const where = [host, process === bus.process ? "this process" : ""].filter(Boolean).join(", ");
    return row([["Process", name || process, make("span", "sub", where)], ["Roles", roles.join(" and "), stopping ? make("span", "sub bad", "stopping") : ""],
      ["Leads shards", led.join(", ") || "–"], ["Clients", number.format(clients)], ["Rooms", number.format(rooms)],
      ["Running for", durationText((Date.parse(time) - Date.parse(since)) / 1000)], ["Version", version]]);
  }));
}

function showLeaders({ kind, shards, ingestProcesses, process }) {
  byId("leaders").hidden = kind === "memory" || !shards.length;
  const known = ingestProcesses ? `: ${countText(ingestProcesses, "process ingests", "processes ingest")}` : "";
  setText(byId("leaders-title"), `Leaders${known}`);
  const words = { leader: "leads", follower: "follows", unsure: "does not know the leader" };
  fill(byId("shards").tBodies[0], shards.map(({ shard, state, leader, heartbeatAgeMs }) => {
    const isSilent = heartbeatAgeMs > 15000;
    const age = heartbeatAgeMs === null ? "–" : `${ageText(heartbeatAgeMs)} ago`;
    return row([["Shard", String(shard)], ["Leader", leader === null ? "–" : leader || "none", leader && leader === process ? make("span", "sub", "this process") : ""],
      ["This process", words[state] ?? "only serves"], ["Heartbeat", make("span", isSilent ? "bad" : "", age)]]);
  }));
}

function row(cells) {
  const made = make("tr", "");
  made.setAttribute("role", "row");
  for (const [label, ...content] of cells) {
    const cell = make("td", "", ...content);
    cell.setAttribute("role", "cell");
    if (label) cell.dataset.label = label;
    made.append(cell);
  }
  return made;
}

new StatusPage();
