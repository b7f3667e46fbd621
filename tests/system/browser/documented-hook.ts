import { useEffect, useRef, useState } from 'react';

interface UseWebSocketCandlesOptions {
  symbol: string;
  interval: string;
  initialBars?: number;
}

export const useWebSocketCandles = ({
  symbol,
  interval,
  initialBars = 100
}: UseWebSocketCandlesOptions) => {
  const [candles, setCandles] = useState<Candle[]>([]);
  const [isConnected, setIsConnected] = useState(false);
  const wsRef = useRef<WebSocket | null>(null);

  useEffect(() => {
    const ws = new WebSocket('ws://localhost:7000');
    wsRef.current = ws;

    ws.onopen = () => {
      setIsConnected(true);
      ws.send(JSON.stringify({
        type: 'subscribe',
        symbol,
        interval,
        initialBars
      }));
    };

    ws.onmessage = (event) => {
      const message = JSON.parse(event.data);

      if (message.type === 'initial') {
        setCandles(message.bars);
      } else if (message.type === 'update') {
        setCandles(prev => {
          const last = prev[prev.length - 1];

          // Check if update is for current candle or new candle
          if (last && new Date(last.time).getTime() === new Date(message.bar.time).getTime()) {
            // Update current candle
            return [...prev.slice(0, -1), message.bar];
          } else {
            // New candle
            return [...prev, message.bar];
          }
        });
      }
    };

    ws.onclose = () => {
      setIsConnected(false);
    };

    return () => {
      ws.close();
    };
  }, [symbol, interval, initialBars]);

  return { candles, isConnected };
};
