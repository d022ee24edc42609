/** Metrics in the text format of Prometheus: calls by method and status, executors, databases, the process. */
import { monitorEventLoopDelay } from "node:perf_hooks";
import { codeName, type ObservedCall } from "./call.ts";

/** Where the figures come from; each function is called once for every reading. */
export interface MetricSources {
  executors(): {
    readonly executors: number;
    readonly busy: number;
    readonly waitingCalls: number;
    readonly runningCalls: number;
    readonly openConnections: number;
    readonly restarts: number;
    readonly residentBytes: number;
  };
  engine(): {
    readonly databases: number;
    readonly openDatabases: number;
    readonly databaseBytes: number;
    readonly walBytes: number;
    readonly flushes: number;
    readonly checkpoints: number;
    readonly openTransactions: number;
    readonly heads: Readonly<Record<"memory" | "local" | "none", { readonly count: number; readonly bytes: number }>>;
    readonly moves: {
      readonly running: number;
      readonly waiting: number;
      readonly hydrations: number;
      readonly hydrated: number;
      readonly promotions: number;
      readonly demotions: number;
      readonly failures: number;
    };
    readonly sync: {
      readonly uploads: number;
      readonly puts: number;
      readonly uploadedBytes: number;
      readonly uploadFailures: number;
      readonly compactions: number;
      readonly snapshots: number;
      readonly unsyncedDatabases: number;
      readonly unsyncedBytes: number;
      readonly lagMs: number;
      readonly fencedDatabases: number;
      readonly deletionsPending: number;
    };
    readonly isRemoteHealthy: boolean;
  };
  transport(): { readonly connections: number; readonly callsActive: number; readonly bytesHeld: number };
}

export interface Metrics {
  /** Counts a call; a few additions, nothing else. */
  observeCall(call: ObservedCall): void;
  /** All metrics as text. */
  text(): Promise<string>;
}

/** Content type of `text()`. */
export const METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Upper bounds of the durations' buckets, in milliseconds. */
const bucketsMs = [0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 300_000];

interface MethodFigures {
  readonly labels: string;
  /** Calls by protocol and code. */
  readonly calls: Map<string, Map<number, number>>;
  readonly buckets: Float64Array;
  durationMs: number;
  count: number;
  requestBytes: number;
  responseBytes: number;
}

/** A value, or one for each stage. */
type Value = number | Readonly<Record<string, number>>;
type Figure = readonly [name: string, kind: "gauge" | "counter", help: string, value: Value];

/** Starts measuring. prom-client, which reads the process's own figures, is loaded at the first reading. */
export function createMetrics(sources: MetricSources): Metrics {
  const methods = new Map<string, Map<string, MethodFigures>>();
  const eventLoop = monitorEventLoopDelay({ resolution: 10 });
  eventLoop.enable();
  let processMetrics: Promise<{ metrics(): Promise<string> }> | undefined;

  const addFigures = (service: string, method: string): MethodFigures => {
    const figures: MethodFigures = {
      labels: `service="${service}",method="${method}"`,
      calls: new Map(),
      buckets: new Float64Array(bucketsMs.length),
      durationMs: 0,
      count: 0,
      requestBytes: 0,
      responseBytes: 0,
    };
    const ofService = methods.get(service) ?? new Map<string, MethodFigures>();
    methods.set(service, ofService.set(method, figures));
    return figures;
  };
  const other = addFigures("other", "other");
  // A caller who makes names up must not add series.
  const figuresOf = ({ service, method, exists }: ObservedCall): MethodFigures =>
    exists ? (methods.get(service)?.get(method) ?? addFigures(service, method)) : other;

  return {
    observeCall(call) {
      const figures = figuresOf(call);
      const codes = figures.calls.get(call.protocol) ?? new Map<number, number>();
      if (codes.size === 0) figures.calls.set(call.protocol, codes);
      codes.set(call.code, (codes.get(call.code) ?? 0) + 1);
      let bucket = 0;
      while (bucket < bucketsMs.length && call.durationMs > (bucketsMs[bucket] ?? 0)) bucket++;
      if (bucket < bucketsMs.length) figures.buckets[bucket] = (figures.buckets[bucket] ?? 0) + 1;
      figures.durationMs += call.durationMs;
      figures.count++;
      figures.requestBytes += call.requestBytes;
      figures.responseBytes += call.responseBytes;
    },
    async text() {
      processMetrics ??= import("./process-metrics.ts").then(({ readProcess }) => readProcess());
      const own = [
        ...figureLines(readSources(sources)),
        ...callLines([...methods.values()].flatMap((ofService) => [...ofService.values()])),
        ...lagLines(eventLoop),
      ];
      eventLoop.reset();
      return `${own.join("\n")}\n${await (await processMetrics).metrics()}`;
    },
  };
}

function readSources(sources: MetricSources): Figure[] {
  const executors = sources.executors();
  const engine = sources.engine();
  const transport = sources.transport();
  return [
    ["persisto_connections", "gauge", "Open client connections.", transport.connections],
    ["persisto_calls_active", "gauge", "Calls under way.", transport.callsActive],
    ["persisto_call_bytes", "gauge", "Requests and unary answers in memory.", transport.bytesHeld],
    ["persisto_executors", "gauge", "Executor processes.", executors.executors],
    ["persisto_executors_busy", "gauge", "Executor processes that run a statement.", executors.busy],
    ["persisto_executor_calls_waiting", "gauge", "Calls that wait for an executor.", executors.waitingCalls],
    ["persisto_executor_calls_running", "gauge", "Calls sent to executors.", executors.runningCalls],
    ["persisto_executor_connections", "gauge", "Open SQLite connections.", executors.openConnections],
    ["persisto_executor_restarts_total", "counter", "Executors that died or were killed.", executors.restarts],
    ["persisto_executor_resident_bytes", "gauge", "Resident memory of all executors.", executors.residentBytes],
    ["persisto_databases", "gauge", "Databases that exist.", engine.databases],
    ["persisto_databases_open", "gauge", "Databases in use.", engine.openDatabases],
    ["persisto_database_bytes", "gauge", "Size of the databases in use.", engine.databaseBytes],
    ["persisto_wal_bytes", "gauge", "Size of their write-ahead logs.", engine.walBytes],
    ["persisto_flushes_total", "counter", "Flushes of write-ahead logs.", engine.flushes],
    ["persisto_checkpoints_total", "counter", "Checkpoints.", engine.checkpoints],
    ["persisto_transactions_open", "gauge", "Open transactions.", engine.openTransactions],
    ...stageFigures(engine),
  ];
}

function stageFigures({ heads, moves, sync, isRemoteHealthy }: ReturnType<MetricSources["engine"]>): Figure[] {
  const { memory, local, none: remote } = heads;
  const count = { memory: memory.count, local: local.count, remote: remote.count };
  const bytes = { memory: memory.bytes, local: local.bytes, remote: remote.bytes };
  const healthy = isRemoteHealthy ? 1 : 0;
  return [
    ["persisto_stage_databases", "gauge", "Databases by the closest stage that has their file.", count],
    ["persisto_stage_bytes", "gauge", "Size of these databases.", bytes],
    ["persisto_remote_healthy", "gauge", "1 while the object store answers.", healthy],
    ["persisto_moves_running", "gauge", "Moves between stages under way.", moves.running],
    ["persisto_moves_waiting", "gauge", "Moves that wait for their turn.", moves.waiting],
    ["persisto_promotions_total", "counter", "Moves to a closer stage.", moves.promotions],
    ["persisto_demotions_total", "counter", "Moves to a farther stage.", moves.demotions],
    ["persisto_moves_failed_total", "counter", "Moves that failed or were cancelled.", moves.failures],
    ["persisto_hydrations_total", "counter", "Databases brought from the remote stage.", moves.hydrated],
    ["persisto_hydrations_running", "gauge", "Databases on their way from the remote stage.", moves.hydrations],
    ["persisto_unsynced_databases", "gauge", "Databases with commits that are not uploaded.", sync.unsyncedDatabases],
    ["persisto_unsynced_bytes", "gauge", "Bytes on the local disk that wait for their upload.", sync.unsyncedBytes],
    ["persisto_sync_lag_seconds", "gauge", "Age of the oldest commit that is not uploaded.", sync.lagMs / 1000],
    ["persisto_uploads_total", "counter", "Batches uploaded.", sync.uploads],
    ["persisto_upload_failures_total", "counter", "Uploads that failed and are tried again.", sync.uploadFailures],
    ["persisto_uploaded_bytes_total", "counter", "Bytes of objects put.", sync.uploadedBytes],
    ["persisto_object_puts_total", "counter", "Objects put, of any kind.", sync.puts],
    ["persisto_compactions_total", "counter", "Compactions in the remote stage.", sync.compactions],
    ["persisto_snapshots_total", "counter", "Snapshots put into the remote stage.", sync.snapshots],
    ["persisto_fenced_databases", "gauge", "Databases that another server writes.", sync.fencedDatabases],
    ["persisto_deletions_pending", "gauge", "Deleted databases with a remote copy left.", sync.deletionsPending],
  ];
}

function figureLines(figures: readonly Figure[]): string[] {
  return figures.flatMap(([name, kind, help, value]) => [
    ...heading(name, kind, help),
    ...(typeof value === "number"
      ? [`${name} ${value}`]
      : Object.entries(value).map(([stage, ofStage]) => `${name}{stage="${stage}"} ${ofStage}`)),
  ]);
}

function callLines(methods: Iterable<MethodFigures>): string[] {
  const used = [...methods].filter((figures) => figures.count > 0);
  const lines = heading("persisto_calls_total", "counter", "Calls that have ended, by method, protocol and status.");
  for (const { labels, calls } of used) {
    for (const [protocol, codes] of calls) {
      for (const [code, count] of codes) {
        lines.push(`persisto_calls_total{${labels},protocol="${protocol}",code="${codeName(code)}"} ${count}`);
      }
    }
  }
  const duration = "persisto_call_duration_seconds";
  lines.push(...heading(duration, "histogram", "How long calls took."));
  for (const { labels, buckets, count, durationMs } of used) {
    let below = 0;
    for (const [index, boundMs] of bucketsMs.entries()) {
      below += buckets[index] ?? 0;
      lines.push(`${duration}_bucket{${labels},le="${boundMs / 1000}"} ${below}`);
    }
    lines.push(`${duration}_bucket{${labels},le="+Inf"} ${count}`);
    lines.push(`${duration}_sum{${labels}} ${durationMs / 1000}`, `${duration}_count{${labels}} ${count}`);
  }
  for (const direction of ["request", "response"] as const) {
    const name = `persisto_${direction}_bytes_total`;
    lines.push(...heading(name, "counter", `Bytes of ${direction} messages.`));
    for (const figures of used) lines.push(`${name}{${figures.labels}} ${figures[`${direction}Bytes`]}`);
  }
  return lines;
}

/** Since the last reading. */
function lagLines(eventLoop: ReturnType<typeof monitorEventLoopDelay>): string[] {
  const name = "persisto_event_loop_lag_seconds";
  const seconds = (nanoseconds: number): number => (Number.isFinite(nanoseconds) ? nanoseconds / 1e9 : 0);
  return [
    ...heading(name, "gauge", "How late the server's event loop ran, since the last reading."),
    `${name}{quantile="0.5"} ${seconds(eventLoop.percentile(50))}`,
    `${name}{quantile="0.99"} ${seconds(eventLoop.percentile(99))}`,
    `${name}{quantile="1"} ${seconds(eventLoop.max)}`,
  ];
}

function heading(name: string, kind: string, help: string): string[] {
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${kind}`];
}
