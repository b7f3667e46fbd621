/** Texts for numbers, times and states. Pure. */

const smallVolume = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 6 });
const largeVolume = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat("en-US");

export function volumeText(number) {
  return (number < 10000 ? smallVolume : largeVolume).format(number);
}

export function countText(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

/** Return an ISO 8601 time to the minute. */
export function timeText(time) {
  return time.slice(0, 16).replace("T", " ");
}

export function changeText({ open, close }) {
  const percent = (close / open - 1) * 100;
  return `${percent < 0 ? "−" : "+"}${Math.abs(percent).toFixed(2)} %`;
}

/** Return a share of 1 in percent; less than 1 is never rounded up to 100 %. */
export function shareText(share) {
  return `${share === 1 ? "100" : (Math.floor(share * 10000) / 100).toFixed(2)} %`;
}

export function direction({ open, close }) {
  return close < open ? "down" : "up";
}

/** The title and meaning of each state of a stream. */
export const STATES = {
  connecting: ["Connecting…", "The connection is being opened."],
  loading: ["Waiting for candles…", "Subscribed; waiting for the first bars."],
  live: ["Live", "Candles are arriving."],
  quiet: ["Quiet", "No candles are arriving, and the exchange confirms that nothing was traded."],
  polling: ["Polling", "The stream sends no candles. They are read from the exchange every few seconds."],
  stale: ["Stale", "No candles are arriving, and it is not known if there are any."],
  warming: ["Warming up", "The current week is being fetched; the first bars follow."],
  recovering: ["Recovering", "Minutes of the last two hours are being fetched."],
  lost: ["Connection lost, trying again", "The server cannot be reached."],
  refused: ["Refused", "The server does not serve this."],
  closed: ["Closed", ""],
};

/** Why a feed is not live. */
export const STATE_REASONS = {
  starting: "The exchange has not answered yet.",
  no_trades: "Nothing was traded.",
  unconfirmed_silence: "The stream is silent; candled is checking with the exchange if anything was traded.",
  stream_down: "The stream is not connected.",
  stream_flooded: "The exchange sends more messages than candled accepts.",
  stream_silent: "The stream is connected, but silent while the market trades.",
  subscription_refused: "The exchange refuses the subscription.",
  not_listed: "The exchange does not list this symbol.",
  not_open: "Trading has not begun yet.",
  suspended: "The exchange has suspended trading.",
  delisted: "The exchange does not trade this symbol any more.",
  rest_unavailable: "The exchange's REST API cannot be read.",
  fetching: "Missing minutes are being fetched.",
  unconfirmed_beginning: "It is not known yet if the exchange has older minutes.",
  leader_silent: "The process that reads the exchange sends nothing.",
  leader_differs: "The process that reads the exchange does not read this symbol.",
  messages_lost: "Messages from the process that reads the exchange do not arrive.",
  bus_unreadable: "The newest state cannot be read from the bus.",
  not_published: "The candles read from the exchange cannot be published.",
};

/** Why minutes are missing. */
export const REASONS = {
  no_trades: "nothing was traded",
  unconfirmed: "the exchange returns nothing for them, and nothing else confirms it; it is asked again",
  invalid: "the exchange's rows for them are not valid candles; it is asked again",
  exchange_outage: "the exchange does not have them",
  beyond_history: "older than the exchange's history",
  missing: "not fetched yet",
};

export function reasonText(reason) {
  return REASONS[reason] ?? reason.replaceAll("_", " ");
}
