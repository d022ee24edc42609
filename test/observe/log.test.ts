import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type ObservedCall, traceIdOf } from "../../src/observe/call.ts";
import { callLogger, type LogLevel, openLog } from "../../src/observe/log.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "persisto-log-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

const call: ObservedCall = {
  service: "persisto.v1.DatabaseService",
  method: "Execute",
  exists: true,
  protocol: "grpc",
  code: 5,
  durationMs: 1.23456,
  requestBytes: 10,
  responseBytes: 20,
  notes: { database: "orders", requestId: "2b1f" },
  traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
  peer: "127.0.0.1:5000",
};

async function lines(level: LogLevel, write: (log: Awaited<ReturnType<typeof openLog>>) => void, isTTY = false) {
  const shown: string[] = [];
  const log = await openLog({
    level,
    outputFilePath: join(folder, "deep", "logs.log"),
    output: { isTTY, write: (line: string) => void shown.push(line) },
  });
  write(log);
  log.flush();
  const filed = readFileSync(join(folder, "deep", "logs.log"), "utf8")
    .trim()
    .split("\n");
  return { shown, filed: filed.filter((line) => line !== "").map((line) => JSON.parse(line)) };
}

describe("openLog()", () => {
  it("writes JSON lines to the output and to the file", async () => {
    const { shown, filed } = await lines("info", (log) => log.warn("nearly full", { usedBytes: 7 }));
    expect(filed).toEqual([
      { level: "warn", time: expect.any(String), pid: process.pid, usedBytes: 7, message: "nearly full" },
    ]);
    expect(JSON.parse(shown[0] ?? "")).toEqual(filed[0]);
  });

  it("is readable on a terminal, JSON in the file all the same", async () => {
    const { shown, filed } = await lines("info", (log) => log.info("ready", { port: 8080 }), true);
    expect(shown.join("")).toContain("ready");
    expect(() => JSON.parse(shown[0] ?? "")).toThrow(SyntaxError);
    expect(filed[0]).toMatchObject({ message: "ready", port: 8080 });
  });

  it("lets nothing that callers wrote steer a terminal", async () => {
    const { shown } = await lines("info", (log) => log.info("ready", { asked: "\u001b[2J\\u001b\u009b1m\r" }), true);
    expect(shown.join("")).toContain('"\ufffd[2J\\u001b\ufffd1m\ufffd"');
  });

  it.each([
    ["debug", 5],
    ["info", 4],
    ["warn", 3],
    ["error", 2],
    ["fatal", 1],
  ] as const)("keeps what is at %s or above", async (level, expected) => {
    const { filed } = await lines(level, (log) => {
      for (const each of ["debug", "info", "warn", "error", "fatal"] as const) log.write(each, "line");
    });
    expect(filed).toHaveLength(expected);
  });

  it("writes errors with their stack and their causes", async () => {
    const error = new Error("outer", { cause: new Error("the disk is gone") });
    const { filed } = await lines("info", (log) => log.error("failed", { errorId: "e1", error }));
    expect(filed[0]).toMatchObject({ errorId: "e1", error: { type: "Error", message: "outer" } });
    expect(JSON.stringify(filed[0])).toContain("the disk is gone");
  });

  it("refuses a file that cannot be written", async () => {
    await expect(openLog({ level: "info", outputFilePath: folder })).rejects.toThrow(/EISDIR|directory/);
  });
});

describe("callLogger()", () => {
  it("writes one line a call at debug, with the trace id", async () => {
    const { filed } = await lines("debug", (log) => callLogger(log)?.(call));
    expect(filed).toEqual([
      expect.objectContaining({
        level: "debug",
        message: "call",
        method: "persisto.v1.DatabaseService/Execute",
        protocol: "grpc",
        code: "NOT_FOUND",
        durationMs: 1.235,
        database: "orders",
        requestId: "2b1f",
        traceId: "4bf92f3577b34da6a3ce929d0e0e4736",
      }),
    ]);
  });

  it("is not there above debug", async () => {
    await lines("info", (log) => expect(callLogger(log)).toBeUndefined());
  });
});

describe("traceIdOf()", () => {
  it.each([
    undefined,
    "",
    "garbage",
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
  ])("takes nothing from %s", (header) => expect(traceIdOf(header)).toBeUndefined());
});
