/** What the numbers of bars look like. */

/** How many decimals the prices of bars have. */
export function priceDecimals(bars) {
  let most = 0;
  for (const { open, high, low, close } of bars) {
    for (const price of [open, high, low, close]) most = Math.max(most, decimalsOf(price));
  }
  return most;
}

/** Digits after the point of a number, which JavaScript prints as 1e-7 when it is small. */
function decimalsOf(number) {
  const [digits, exponent = "0"] = String(number).split("e");
  return Math.max(0, (digits.split(".")[1] ?? "").length - Number(exponent));
}
