/** The program as a process of its own, as an operator starts it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";

const root = resolve(import.meta.dirname, "..", "..");

export interface ServerProcess {
  readonly port: number;
  readonly pid: number;
  /** Everything it has written so far. */
  readonly output: string;
  /** Sends the signal and waits for the end; the exit code, or the name of the signal that ended it. */
  end(signal: NodeJS.Signals): Promise<number | NodeJS.Signals>;
}

export interface StartOptions {
  /** src/main.ts unless told otherwise. */
  readonly program?: string;
  readonly environment?: Readonly<Record<string, string>>;
}

/** Longest a start may take on a busy machine. */
const START_MS_MAX = 20_000;

/** Resolves when it serves; rejects with its output when it ends before that. */
export async function startServerProcess(folder: string, options: StartOptions = {}): Promise<ServerProcess> {
  const { child, output } = spawnServer(folder, options);
  let timer: NodeJS.Timeout | undefined;
  const port = await new Promise<number>((done, fail) => {
    timer = setTimeout(() => fail(new Error(`no start within ${START_MS_MAX} ms: ${output.text}`)), START_MS_MAX);
    child.stdout?.on("data", () => {
      // Its last line, with what to try.
      const found = /"port":(\d+)[^\n]*serves gRPC[\s\S]*grpcurl/.exec(output.text);
      if (found !== null) done(Number(found[1]));
    });
    child.once("exit", (code) => fail(new Error(`ended with ${code}: ${output.text}`)));
  })
    .catch((error: unknown) => {
      child.kill("SIGKILL");
      throw error;
    })
    .finally(() => clearTimeout(timer));
  return {
    port,
    pid: child.pid ?? 0,
    get output() {
      return output.text;
    },
    async end(signal) {
      if (child.exitCode !== null || child.signalCode !== null) return child.exitCode ?? child.signalCode ?? 0;
      const ended = once(child, "exit");
      child.kill(signal);
      const [code, by] = await ended;
      return code ?? by;
    },
  };
}

/** For starts that must fail: exit code and output. */
export async function startInVain(folder: string, options: StartOptions = {}) {
  const { child, output } = spawnServer(folder, options);
  const timer = setTimeout(() => child.kill("SIGKILL"), START_MS_MAX);
  const [code] = await once(child, "close");
  clearTimeout(timer);
  return { code: code as number | null, output: output.text };
}

function spawnServer(folder: string, { program = "src/main.ts", environment = {} }: StartOptions) {
  const child: ChildProcess = spawn(process.execPath, [resolve(root, program)], {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      PATH: process.env["PATH"],
      HOME: process.env["HOME"],
      SERVER_PORT: "0",
      EXECUTOR_COUNT_MIN: "1",
      EXECUTOR_COUNT_MAX: "2",
      ...environment,
    },
  });
  const output = { text: "" };
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding("utf8");
    stream?.on("data", (text: string) => {
      output.text = (output.text + text).slice(-1_000_000);
    });
  }
  return { child, output };
}
