// ccxt watches an interval; prints two answers, or the error, one line of JSON each.
const [library, port, timeframe] = process.argv.slice(2);
const { default: ccxt } = await import(`${library}/ccxt/js/ccxt.js`);
const exchange = new ccxt.pro.binance({
  urls: { api: { public: `http://127.0.0.1:${port}/api/v3`, ws: { spot: `ws://127.0.0.1:${port}/ws/stream` } } },
  options: { fetchMarkets: { types: ["spot"] } },
});
await exchange.loadHttpProxyAgent(); // without which ccxt refuses addresses that begin with ws://
await exchange.loadMarkets();
const begun = Date.now();
try {
  for (let count = 0; count < 2; count += 1) {
    const [bar] = (await exchange.watchOHLCV("BTC/USDT", timeframe)).slice(-1);
    console.log(JSON.stringify({ time: bar[0], close: bar[4] }));
  }
} catch (error) {
  console.log(JSON.stringify({ refused: error.message, ms: Date.now() - begun }));
}
await exchange.close();
