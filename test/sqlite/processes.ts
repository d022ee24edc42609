/** Looks at this process's children and descriptors through /proc. */
import { readdirSync, readFileSync } from "node:fs";

/** Process ids of the executors that this process has started. */
export function executorPids(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => parentOf(name) === process.pid && argumentsOf(name).includes("program."))
    .map(Number);
}

export function descriptorCount(pid: number | "self" = "self"): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** True once the process has a handler for SIGHUP, the last one that executors install. */
export function catchesSignals(pid: number): boolean {
  const caught = /^SigCgt:\s*([0-9a-f]+)$/m.exec(fileOf(`/proc/${pid}/status`))?.[1] ?? "0";
  return (BigInt(`0x${caught}`) & 1n) === 1n;
}

/** Time that the process has computed, in hundredths of a second. */
export function cpuTicks(pid: number): number {
  const [, , , , , , , , , , , user = "0", system = "0"] =
    fileOf(`/proc/${pid}/stat`).split(") ").at(-1)?.split(" ") ?? [];
  return Number(user) + Number(system);
}

function parentOf(pid: string): number {
  // Behind the name in brackets, which may hold anything: state, then the parent.
  return Number(fileOf(`/proc/${pid}/stat`).split(") ").at(-1)?.split(" ")[1]);
}

function argumentsOf(pid: string): string {
  return fileOf(`/proc/${pid}/cmdline`);
}

function fileOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // It has ended meanwhile.
    return "";
  }
}
