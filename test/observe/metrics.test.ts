import { describe, expect, it } from "vitest";
import type { EngineStats } from "../../src/engine/engine.ts";
import type { ObservedCall } from "../../src/observe/call.ts";
import { createMetrics, type Metrics } from "../../src/observe/metrics.ts";
import type { ExecutorStats } from "../../src/sqlite/executor.ts";

const executors: ExecutorStats = {
  executors: 2,
  busy: 1,
  waitingCalls: 3,
  runningCalls: 4,
  openConnections: 5,
  restarts: 6,
  residentBytes: 7,
};
const engine: EngineStats = {
  databases: 10,
  openDatabases: 9,
  databaseBytes: 8192,
  walBytes: 4096,
  flushes: 12,
  checkpoints: 13,
  openTransactions: 14,
  heads: { memory: { count: 1, bytes: 100 }, local: { count: 2, bytes: 200 }, none: { count: 7, bytes: 700 } },
  moves: { running: 15, waiting: 16, hydrations: 17, hydrated: 28, promotions: 29, demotions: 30, failures: 31 },
  sync: {
    uploads: 18,
    puts: 19,
    uploadedBytes: 20,
    uploadFailures: 21,
    compactions: 22,
    snapshots: 23,
    unsyncedDatabases: 24,
    unsyncedBytes: 25,
    lagMs: 2500,
    fencedDatabases: 26,
    deletionsPending: 27,
  },
  isRemoteHealthy: false,
};

function metrics(): Metrics {
  return createMetrics({
    executors: () => executors,
    engine: () => engine,
    transport: () => ({ connections: 1, callsActive: 2, bytesHeld: 3 }),
  });
}

function call(change: Partial<ObservedCall> = {}): ObservedCall {
  return {
    service: "persisto.v1.DatabaseService",
    method: "Read",
    exists: true,
    protocol: "grpc",
    code: 0,
    durationMs: 3,
    requestBytes: 100,
    responseBytes: 1000,
    notes: { database: "orders" },
    traceparent: undefined,
    peer: "",
    ...change,
  };
}

/** Samples by name and labels. */
async function samples(from: Metrics): Promise<Map<string, number>> {
  const text = await from.text();
  const entries = text
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line): [string, number] => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ")))]);
  return new Map(entries);
}

const read = 'service="persisto.v1.DatabaseService",method="Read"';

describe("createMetrics()", () => {
  it("counts calls by method, protocol and status, and their bytes", async () => {
    const subject = metrics();
    subject.observeCall(call());
    subject.observeCall(call({ code: 14 }));
    subject.observeCall(call({ protocol: "connect" }));
    const found = await samples(subject);
    expect(found.get(`persisto_calls_total{${read},protocol="grpc",code="OK"}`)).toBe(1);
    expect(found.get(`persisto_calls_total{${read},protocol="grpc",code="UNAVAILABLE"}`)).toBe(1);
    expect(found.get(`persisto_calls_total{${read},protocol="connect",code="OK"}`)).toBe(1);
    expect(found.get(`persisto_request_bytes_total{${read}}`)).toBe(300);
    expect(found.get(`persisto_response_bytes_total{${read}}`)).toBe(3000);
  });

  it("sorts durations into cumulative buckets", async () => {
    const subject = metrics();
    for (const durationMs of [0.5, 3, 400, 1e9]) subject.observeCall(call({ durationMs }));
    const found = await samples(subject);
    const bucket = (le: string) => found.get(`persisto_call_duration_seconds_bucket{${read},le="${le}"}`);
    expect(["0.0005", "0.005", "0.5", "300", "+Inf"].map(bucket)).toEqual([1, 2, 3, 3, 4]);
    expect(found.get(`persisto_call_duration_seconds_count{${read}}`)).toBe(4);
  });

  it("shows executors, databases, connections, and the process itself", async () => {
    const found = await samples(metrics());
    expect(found.get("persisto_executors_busy")).toBe(1);
    expect(found.get("persisto_executor_restarts_total")).toBe(6);
    expect(found.get("persisto_databases_open")).toBe(9);
    expect(found.get("persisto_wal_bytes")).toBe(4096);
    expect(found.get("persisto_connections")).toBe(1);
    expect(found.get("persisto_call_bytes")).toBe(3);
    expect(found.get('persisto_event_loop_lag_seconds{quantile="0.99"}')).toBeGreaterThanOrEqual(0);
    expect(found.get("process_resident_memory_bytes")).toBeGreaterThan(0);
  });

  it("shows stages, moves and what is synced", async () => {
    const found = await samples(metrics());
    expect(
      ["memory", "local", "remote"].map((stage) => found.get(`persisto_stage_databases{stage="${stage}"}`)),
    ).toEqual([1, 2, 7]);
    expect(found.get('persisto_stage_bytes{stage="remote"}')).toBe(700);
    expect(found.get("persisto_remote_healthy")).toBe(0);
    expect(found.get("persisto_sync_lag_seconds")).toBe(2.5);
    expect(found.get("persisto_object_puts_total")).toBe(19);
    expect(found.get("persisto_moves_failed_total")).toBe(31);
    expect(found.get("persisto_hydrations_total")).toBe(28);
  });

  it("names no database", async () => {
    const subject = metrics();
    subject.observeCall(call());
    expect(await subject.text()).not.toContain("orders");
  });

  it("holds its size when callers make up methods", async () => {
    const subject = metrics();
    const madeUp = { exists: false, code: 12 };
    for (let index = 0; index < 100; index++) subject.observeCall(call({ ...madeUp, method: `"M${index}\n` }));
    expect((await subject.text()).split("\n").filter((line) => line.startsWith("persisto_calls_total"))).toEqual([
      'persisto_calls_total{service="other",method="other",protocol="grpc",code="UNIMPLEMENTED"} 100',
    ]);
  });
});
