/** Many calls at once on a server: h2load where it is installed, the load generator of this folder otherwise. */
import { execFile, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Bench } from "./benchmark.ts";
import type { LoadAnswer, LoadQuestion } from "./load.ts";
import { Peer } from "./processes.ts";

const version = spawnSync("h2load", ["--version"], { encoding: "utf8" });

/** What h2load calls itself, or undefined. */
export const h2loadVersion = version.status === 0 ? version.stdout.trim() : undefined;

export interface Drive {
  readonly port: number;
  readonly path: string;
  /** One gRPC frame, sent by every call. */
  readonly frame: Buffer;
  readonly connections: number;
  readonly streams: number;
  readonly seconds: number;
  /** Length of the right answer's frame. */
  readonly answerBytes: number;
}

export interface DriveResult {
  readonly callsPerSecond: number;
  readonly calls: number;
}

export async function startLoad(bench: Bench): Promise<Peer> {
  const { peer } = await Peer.start("load generator", "load.ts", [], bench.placement.loads);
  bench.onEnd(() => peer.stop());
  return peer;
}

export async function load(peer: Peer, question: LoadQuestion): Promise<LoadAnswer> {
  const answer = await peer.ask<LoadAnswer>(question);
  if (answer.wrong > 0) throw new Error(`${answer.wrong} of ${answer.callsAnswered} calls went wrong`);
  return answer;
}

/** Gives what drives; rejects when an answer is wrong. */
export async function startDriver(bench: Bench): Promise<(drive: Drive) => Promise<DriveResult>> {
  if (h2loadVersion !== undefined) return (drive) => driveByH2load(bench, drive);
  const peer = await startLoad(bench);
  return async ({ frame, ...rest }) => {
    const calls = [{ frame: frame.toString("base64"), contains: "" }];
    const answer = await load(peer, { ...rest, calls });
    return { callsPerSecond: answer.callsPerSecond, calls: answer.callsAnswered };
  };
}

const run = promisify(execFile);

async function driveByH2load(bench: Bench, drive: Drive): Promise<DriveResult> {
  const bodyPath = join(bench.folder, "body.bin");
  writeFileSync(bodyPath, drive.frame);
  const [command = "h2load", ...args] = [
    ...bench.placement.loads,
    "h2load",
    ...["-c", String(drive.connections), "-m", String(drive.streams), "-t", "1", "-D", `${drive.seconds * 1000}ms`],
    ...["-d", bodyPath, "-H", "content-type: application/grpc", "-H", "te: trailers"],
    `http://127.0.0.1:${drive.port}${drive.path}`,
  ];
  const { stdout } = await run(command, args, { timeout: drive.seconds * 1000 + 30_000 });
  const rate = stdout.match(/finished in [^,]+, ([\d.]+) req\/s/)?.[1];
  const counts = stdout.match(/requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored/);
  const dataBytes = Number(stdout.match(/\((\d+)\) data/)?.[1]);
  const calls = Number(counts?.[1]);
  if (rate === undefined || counts === null || counts[2] !== "0" || counts[3] !== "0" || calls === 0) {
    throw new Error(`h2load:\n${stdout}`);
  }
  // It counts every HTTP 200 as success. A failed call has no message, so too few bytes would show it. The time that
  // SQLite took stands in the answer and may be some bytes longer or shorter; calls cut off at the end add their bytes.
  const open = drive.connections * drive.streams;
  if (dataBytes < calls * (drive.answerBytes - 4) || dataBytes > (calls + open) * (drive.answerBytes + 4)) {
    throw new Error(`${dataBytes} bytes for ${calls} answers of ${drive.answerBytes} bytes:\n${stdout}`);
  }
  return { callsPerSecond: Number(rate), calls };
}
