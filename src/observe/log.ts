/** The log: for people on a terminal, JSON lines elsewhere, and JSON lines into a file. */
import { mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { type DestinationStream, destination, multistream, pino, type StreamEntry, stdSerializers } from "pino";
import { codeName, type ObservedCall, traceIdOf } from "./call.ts";

export type LogLevel = "debug" | "info" | "warn" | "error" | "fatal";

/** What belongs to a line besides its text; errors are written with stack and causes. Never parameters; SQL at debug only. */
export type LogFacts = Readonly<Record<string, unknown>>;

export interface Log {
  enabled(level: LogLevel): boolean;
  write(level: LogLevel, message: string, facts?: LogFacts): void;
  debug(message: string, facts?: LogFacts): void;
  info(message: string, facts?: LogFacts): void;
  warn(message: string, facts?: LogFacts): void;
  error(message: string, facts?: LogFacts): void;
  fatal(message: string, facts?: LogFacts): void;
  /** Writes out what is waiting; for the end of the process. */
  flush(): void;
}

export interface LogOptions {
  readonly level: LogLevel;
  /** Its folder is made when missing; undefined: no file. */
  readonly outputFilePath: string | undefined;
  /** Where lines go besides the file: a terminal gets them readable. Undefined: standard output. */
  readonly output?: DestinationStream & { readonly isTTY?: boolean };
}

/** Longest a line may wait in memory before it is written. */
const FLUSH_MS = 250;
/** Lines are written in pieces of about this size. */
const WRITE_BYTES = 4096;
/** What may wait in memory for a file that cannot be written; later lines are dropped. */
const WAITING_BYTES_MAX = 16 * 1024 * 1024;

/** Opens the log; throws when the file cannot be written. */
export async function openLog(options: LogOptions): Promise<Log> {
  const output = options.output ?? standardOutput();
  const readable = options.output === undefined ? process.stdout.isTTY === true : options.output.isTTY === true;
  const streams: StreamEntry[] = [
    { level: options.level, stream: readable ? (await import("./pretty.ts")).prettyOn(output) : output },
  ];
  let file: ReturnType<typeof destination> | undefined;
  if (options.outputFilePath !== undefined) {
    mkdirSync(dirname(options.outputFilePath), { recursive: true });
    file = destination({
      dest: openSync(options.outputFilePath, "a"),
      sync: false,
      minLength: WRITE_BYTES,
      maxLength: WAITING_BYTES_MAX,
      periodicFlush: FLUSH_MS,
    });
    reportOnce(file, options.outputFilePath);
    streams.push({ level: options.level, stream: file });
  }
  const logger = pino(
    {
      level: options.level,
      base: { pid: process.pid },
      messageKey: "message",
      errorKey: "error",
      serializers: { error: stdSerializers.errWithCause },
      formatters: { level: (label) => ({ level: label }) },
      timestamp: pino.stdTimeFunctions.isoTime,
    },
    multistream(streams, { dedupe: false }),
  );
  const write = (level: LogLevel, message: string, facts: LogFacts = {}): void => logger[level](facts, message);
  return {
    enabled: (level) => logger.isLevelEnabled(level),
    write,
    debug: (message, facts) => write("debug", message, facts),
    info: (message, facts) => write("info", message, facts),
    warn: (message, facts) => write("warn", message, facts),
    error: (message, facts) => write("error", message, facts),
    fatal: (message, facts) => write("fatal", message, facts),
    flush() {
      file?.flushSync();
    },
  };
}

/** One line for each call, at debug; undefined when debug is off, so that calls pay nothing. */
export function callLogger(log: Log): ((call: ObservedCall) => void) | undefined {
  if (!log.enabled("debug")) return undefined;
  return (call) =>
    log.debug("call", {
      method: `${call.service}/${call.method}`,
      protocol: call.protocol,
      code: codeName(call.code),
      durationMs: Math.round(call.durationMs * 1000) / 1000,
      requestBytes: call.requestBytes,
      responseBytes: call.responseBytes,
      peer: call.peer,
      traceId: traceIdOf(call.traceparent),
      ...call.notes,
    });
}

function standardOutput(): DestinationStream {
  const stream = destination({ dest: 1, sync: true });
  // A reader that went away (`| head`) ends the output, not the server.
  stream.on("error", () => stream.removeAllListeners("error").on("error", Boolean));
  return stream;
}

/** A full disk must not end the server: it says so once on standard error and goes on without the file. */
function reportOnce(file: ReturnType<typeof destination>, path: string): void {
  let reported = false;
  file.on("error", (error: Error) => {
    if (!reported) process.stderr.write(`the log file ${path} cannot be written: ${error.message}\n`);
    reported = true;
  });
}
