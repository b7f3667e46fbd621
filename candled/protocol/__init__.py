"""The WebSocket protocol: requests, messages and frames. Pure."""
