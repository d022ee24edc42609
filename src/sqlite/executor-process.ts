/** Executors as child processes: a socket pair, a shared page, and the process's life. */
import { spawn } from "node:child_process";
import { closeSync, existsSync, openSync, unlinkSync, writeFileSync, writeSync } from "node:fs";
import type { Socket } from "node:net";
import { constants, getPriority, setPriority, tmpdir } from "node:os";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { OpenLink } from "./executor-link.ts";
import { FrameReader } from "./frames.ts";
import type { SharedPages } from "./load-native.ts";
import type { ExecutorsOptions } from "./options.ts";
import type { ProgramArgument } from "./program.ts";
import { FRAME_BYTES_MAX, PAGE_BYTES } from "./protocol.ts";

/** A file system in memory, where there is one: the page is never worth a write to a disk. */
const MEMORY_DIRECTORY = "/dev/shm";

/** What an executor said on its standard error last, for the log. */
const STDERR_CHARACTERS_MAX = 2_000;

const SOCKET_INDEX = 3;

/** How far an executor stands back that a long statement has for itself: it gets a tenth of what others get. */
const BACKGROUND_STEP = 10;

/** Makes links that start a process each. `native` maps the page on this side. */
export function processLinks(options: ExecutorsOptions, native: SharedPages): OpenLink {
  const programPath = options.programPath ?? defaultProgramPath();
  const argument: ProgramArgument = {
    limits: options.limits,
    nativePath: options.nativePath,
    serverPid: process.pid,
  };
  const ownPriority = getPriority();
  return (events) => {
    const descriptor = openPage(options.random);
    const page = native.sharedPage(descriptor, PAGE_BYTES);
    // No environment: it holds the server's secrets, and SQL is hostile.
    const child = spawn(process.execPath, [programPath, JSON.stringify(argument)], {
      stdio: ["ignore", "ignore", "pipe", "pipe", descriptor],
      env: {},
      // A terminal's signals go to the group of the server alone.
      detached: true,
    });
    closeSync(descriptor);

    let stderr = "";
    child.stderr?.on("data", (text: Buffer) => {
      stderr = (stderr + text.toString("utf8")).slice(-STDERR_CHARACTERS_MAX);
    });

    let over = false;
    const exit = (how: string): void => {
      if (over) return;
      over = true;
      if (stderr !== "") options.log("error", "an executor said on its standard error", { text: stderr });
      events.exit(how);
    };
    // "close" comes after the process is dead and its socket has been read to the end.
    child.on("close", (code, signal) => exit(signal ?? `exit code ${code}`));
    child.on("error", (error) => {
      if (child.pid === undefined) exit(error.message);
    });

    const socket = child.stdio[SOCKET_INDEX] as Socket | null | undefined;
    const reader = new FrameReader(FRAME_BYTES_MAX, events.frame);
    socket?.on("data", (chunk: Buffer) => {
      try {
        reader.push(chunk);
      } catch (error) {
        socket.removeAllListeners("data");
        socket.resume();
        events.broken(error);
        return;
      }
      events.turn();
    });
    // Its end is told by "close"; writing to a dead one is no news.
    socket?.on("error", () => undefined);

    return {
      page,
      write(parts) {
        if (socket === null || socket === undefined || socket.destroyed) return;
        if (parts.length > 1) socket.cork();
        for (const part of parts) socket.write(part);
        if (parts.length > 1) socket.uncork();
      },
      setBackground(on) {
        if (child.pid === undefined || over) return true;
        const priority = on ? Math.min(constants.priority.PRIORITY_LOW, ownPriority + BACKGROUND_STEP) : ownPriority;
        try {
          setPriority(child.pid, priority);
          setGroupPriority(child.pid, priority);
          return true;
        } catch (error) {
          // It has just died, or this user may lower priorities and not raise them.
          if (error instanceof Error && "code" in error) return over;
          throw error;
        }
      },
      kill() {
        child.kill("SIGKILL");
      },
      end() {
        socket?.end();
      },
    };
  };
}

/**
 * Linux may share the processor between sessions first (sched_autogroup), and only then between the processes of one.
 * Executors have sessions of their own, where priorities alone would change nothing.
 */
function setGroupPriority(pid: number, priority: number): void {
  try {
    writeFileSync(`/proc/${pid}/autogroup`, `${priority}`);
  } catch (error) {
    if (!(error instanceof Error && "code" in error && typeof error.code === "string" && withoutGroups.has(error.code)))
      throw error;
  }
}

/** No such system, no such file, groups switched off, a file that cannot be written. */
const withoutGroups: ReadonlySet<string> = new Set(["ENOENT", "EINVAL", "EROFS", "ENOTSUP", "EACCES"]);

function defaultProgramPath(): string {
  return fileURLToPath(new URL(`./program${extname(import.meta.url)}`, import.meta.url));
}

/** An unnamed file, which parent and child map. */
function openPage(random: () => number): number {
  const name = `persisto-${process.pid}-${Math.floor(random() * 2 ** 48).toString(36)}`;
  if (existsSync(MEMORY_DIRECTORY)) {
    try {
      return openPageAt(join(MEMORY_DIRECTORY, name));
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ENOSPC")) throw error;
    }
  }
  return openPageAt(join(tmpdir(), name));
}

function openPageAt(path: string): number {
  const descriptor = openSync(path, "wx+", 0o600);
  try {
    unlinkSync(path);
    // Written, not only sized: touching a page for which there is no room ends a process.
    writeSync(descriptor, new Uint8Array(PAGE_BYTES));
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
  return descriptor;
}
