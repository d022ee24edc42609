/** Processes beside this one: peers that are measured or that load, and what the system says about a process. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** Which processors servers and load generators run on; empty: wherever the system puts them. */
export interface Placement {
  readonly servers: readonly string[];
  readonly loads: readonly string[];
}

/** Keeps load generators on a core of their own where there are at least four. */
export function choosePlacement(): Placement {
  const cores = availableParallelism();
  const available = cores >= 4 && spawnSync("taskset", ["--version"]).status === 0;
  if (!available) return { servers: [], loads: [] };
  return {
    servers: ["taskset", "--cpu-list", `0-${cores - 2}`],
    loads: ["taskset", "--cpu-list", `${cores - 1}`],
  };
}

const startTimeoutMs = 20_000;
const stopTimeoutMs = 30_000;

/** Waits for the end of a process; kills it when the signal did not end it in time. */
export async function stopProcess(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill(signal);
  const timer = setTimeout(() => child.kill("SIGKILL"), stopTimeoutMs);
  await ended;
  clearTimeout(timer);
}

/**
 * A script of this folder as a process of its own that speaks lines of JSON: one when it is ready, then one answer for
 * each question on its input.
 */
export class Peer {
  readonly #child: ChildProcess;
  readonly #waiting: { take: (line: string) => void; fail: (error: Error) => void }[] = [];
  readonly #lines: string[] = [];
  readonly #errors: string[] = [];
  readonly #name: string;

  private constructor(name: string, script: string, args: readonly string[], prefix: readonly string[]) {
    this.#name = name;
    const [command = process.execPath, ...rest] = [
      ...prefix,
      process.execPath,
      fileURLToPath(new URL(script, import.meta.url)),
      ...args,
    ];
    this.#child = spawn(command, rest, { stdio: ["pipe", "pipe", "pipe"] });
    const { stdout, stderr } = this.#child;
    if (stdout === null || stderr === null) throw new Error("no pipes");
    createInterface({ input: stdout }).on("line", (line) => {
      const waiter = this.#waiting.shift();
      if (waiter === undefined) this.#lines.push(line);
      else waiter.take(line);
    });
    createInterface({ input: stderr }).on("line", (line) => {
      this.#errors.push(line);
      if (this.#errors.length > 20) this.#errors.shift();
    });
    this.#child.on("close", (code, signal) => {
      const error = new Error(`${this.#name} ended (${signal ?? code}): ${this.#errors.join("\n")}`);
      for (const waiter of this.#waiting.splice(0)) waiter.fail(error);
    });
  }

  /** Resolves with the peer and its first line. */
  static async start<Ready>(
    name: string,
    script: string,
    args: readonly string[] = [],
    prefix: readonly string[] = [],
  ): Promise<{ peer: Peer; ready: Ready }> {
    const peer = new Peer(name, script, args, prefix);
    const timer = setTimeout(() => peer.#child.kill("SIGKILL"), startTimeoutMs);
    const ready = JSON.parse(await peer.#line()) as Ready;
    clearTimeout(timer);
    return { peer, ready };
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async ask<Answer>(question: unknown = {}): Promise<Answer> {
    this.#child.stdin?.write(`${JSON.stringify(question)}\n`);
    return JSON.parse(await this.#line()) as Answer;
  }

  async stop(): Promise<void> {
    await stopProcess(this.#child, "SIGTERM");
  }

  #line(): Promise<string> {
    const line = this.#lines.shift();
    if (line !== undefined) return Promise.resolve(line);
    if (this.#child.exitCode !== null) return Promise.reject(new Error(`${this.#name}: ${this.#errors.join("\n")}`));
    return new Promise((take, fail) => this.#waiting.push({ take, fail }));
  }
}

/** Answers each line of the input with what `answer` makes of it. */
export function serveQuestions<Question>(ready: unknown, answer: (question: Question) => unknown): void {
  process.stdout.write(`${JSON.stringify(ready)}\n`);
  const lines = createInterface({ input: process.stdin });
  let turn = Promise.resolve();
  lines.on("line", (line) => {
    turn = turn.then(async () => {
      process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line) as Question))}\n`);
    });
  });
  lines.on("close", () => process.exit(0));
}

/** Processor time that a process has used, in microseconds. The system counts in ticks of 10 ms. */
export function cpuMicros(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

function statusKiB(pid: number, key: string): number {
  const line = readFileSync(`/proc/${pid}/status`, "latin1").match(new RegExp(`^${key}:\\s+(\\d+) kB`, "m"));
  return Number(line?.[1] ?? Number.NaN);
}

/** Resident memory in MiB. */
export function residentMiB(pid: number): number {
  return statusKiB(pid, "VmRSS") / 1024;
}

/** The most resident memory since `forgetPeak`, in MiB. */
export function peakMiB(pid: number): number {
  return statusKiB(pid, "VmHWM") / 1024;
}

export function forgetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
}

/** Processes whose parent is this one. */
export function childPids(parent: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
        return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]) === parent;
      } catch {
        // It ended between the listing and the look.
        return false;
      }
    });
}
