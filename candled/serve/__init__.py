"""The HTTP and WebSocket server: serve rooms, history and the chart page to clients."""
