/** A transport with a small service behind it, and ways to speak to it. */
import type { TransportLimits } from "../../src/transport/transport.ts";

/** Limits wide enough that no test meets one by accident. */
export const testLimits: TransportLimits = {
  readBytesMax: 4 * 1024 * 1024,
  writeBytesMax: 4 * 1024 * 1024,
  readTimeoutMs: 10_000,
  writeTimeoutMs: 10_000,
  idleTimeoutMs: 120_000,
  deadlineMsMax: 300_000,
  headerBytesMax: 16 * 1024,
  streamsPerConnectionMax: 1_000,
  connectionCountMax: 10_000,
  streamResetBurst: 1_000,
  streamResetRate: 33,
  compressBytesMin: 65_536,
  pingIntervalMs: 0,
  pingTimeoutMs: 20_000,
  connectionAgeMs: 0,
  connectionAgeGraceMs: 10_000,
};
