/** Numbers, times and states as a reader wants them. Pure. */

const smallVolume = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 6 });
const largeVolume = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en-US");

export function volumeText(number) {
  return (number < 10000 ? smallVolume : largeVolume).format(number);
}

export function countText(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

/** ISO 8601 text, to the minute. */
export function timeText(time) {
  return time.slice(0, 16).replace("T", " ");
}

export function changeText({ open, close }) {
  const percent = (close / open - 1) * 100;
  return `${percent < 0 ? "−" : "+"}${Math.abs(percent).toFixed(2)} %`;
}

/** A share of 1 in percent, never rounded up to all of it. */
export function shareText(share) {
  return `${share === 1 ? "100" : (Math.floor(share * 10000) / 100).toFixed(2)} %`;
}

export function direction({ open, close }) {
  return close < open ? "down" : "up";
}

/** What the state of a stream is called, and what it means. */
export const STATES = {
  connecting: ["Connecting…", "The socket is being opened."],
  loading: ["Waiting for candles…", "Subscribed; the bars have not come yet."],
  live: ["Live", "Candles come."],
  quiet: ["Quiet", "No candles come, and the exchange confirms that nothing was traded."],
  polling: ["Polling", "The stream does not bring candles: they are read from the exchange every few seconds."],
  stale: ["Stale", "No candles come, and whether there are any is not known."],
  warming: ["Warming up", "The running week is being fetched; the first bars follow."],
  recovering: ["Recovering", "Minutes of the last two hours are being fetched."],
  lost: ["Connection lost, trying again", "The server cannot be reached."],
  refused: ["Refused", "The server does not serve this."],
  closed: ["Closed", ""],
};

/** Why a feed is not live. */
export const STATE_REASONS = {
  starting: "Nothing has answered yet.",
  no_trades: "Nothing was traded.",
  unconfirmed_silence: "The stream is silent; the exchange is being asked whether anything was traded.",
  stream_down: "The stream is not connected.",
  stream_silent: "The stream is connected, but silent while the market trades.",
  subscription_refused: "The exchange refuses the subscription.",
  not_listed: "The exchange does not list this symbol.",
  rest_unavailable: "The exchange's REST API cannot be read.",
  fetching: "Missing minutes are being fetched.",
  unconfirmed_beginning: "Whether the exchange has older minutes is not known yet.",
  leader_silent: "The process that reads the exchange is not heard.",
  leader_differs: "The process that reads the exchange does not read this symbol.",
  messages_lost: "The messages of the process that reads the exchange do not arrive.",
  bus_unreadable: "The newest state cannot be read from the bus.",
  not_published: "What is read from the exchange cannot be published.",
};

/** Why minutes are not there. */
export const REASONS = {
  no_trades: "nothing was traded",
  unconfirmed: "the exchange says it has nothing there, and nothing confirms it",
  invalid: "the exchange's row for it cannot be read",
  exchange_outage: "the exchange has no candles there",
  beyond_history: "older than the exchange's history",
  missing: "not fetched yet",
};

export function reasonText(reason) {
  return REASONS[reason] ?? reason.replaceAll("_", " ");
}
