/** A command of the program as a process of its own. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";

const root = resolve(import.meta.dirname, "..", "..");

export interface CommandResult {
  readonly code: number | null;
  readonly printed: string;
  readonly complaints: string;
}

export interface CommandOptions {
  /** src/main.ts unless told otherwise. */
  readonly program?: string | undefined;
  readonly environment?: Readonly<Record<string, string>>;
}

const msMax = 30_000;

/** Runs it in a folder with nothing of this process's environment but the path. */
export async function runCommandProcess(
  folder: string,
  args: readonly string[],
  { program = "src/main.ts", environment = {} }: CommandOptions = {},
): Promise<CommandResult> {
  const child = spawn(process.execPath, [resolve(root, program), ...args], {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env["PATH"], HOME: folder, EXECUTOR_COUNT_MAX: "1", ...environment },
    timeout: msMax,
  });
  const output = { printed: "", complaints: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output.printed += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    output.complaints += text;
  });
  const [code] = await once(child, "close");
  return { code, ...output };
}
