// The module `react` of a bundler, made of the global that its UMD build leaves.
export const { useCallback, useRef, useSyncExternalStore } = globalThis.React;
