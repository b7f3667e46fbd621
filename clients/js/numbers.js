/** Decimals of the numbers in bars. */

/** Return the largest number of decimals in the prices of bars. */
export function priceDecimals(bars) {
  let most = 0;
  for (const { open, high, low, close } of bars) {
    for (const price of [open, high, low, close]) most = Math.max(most, decimalsOf(price));
  }
  return most;
}

/** Return the number of decimals. JavaScript prints small numbers as 1e-7. */
function decimalsOf(number) {
  const [digits, exponent = "0"] = String(number).split("e");
  return Math.max(0, (digits.split(".")[1] ?? "").length - Number(exponent));
}
