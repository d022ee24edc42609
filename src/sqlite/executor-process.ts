/** Executors as child processes: a socket pair, a shared page, and the process's life. */
import { spawn } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, openSync, unlinkSync } from "node:fs";
import type { Socket } from "node:net";
import { constants, setPriority, tmpdir } from "node:os";
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

/** Of an executor that a long statement has for itself: it gets a tenth of what others get, and all when there are none. */
const BACKGROUND_PRIORITY = constants.priority.PRIORITY_BELOW_NORMAL;

/** Makes links that start a process each. `native` maps the page on this side. */
export function processLinks(options: ExecutorsOptions, native: SharedPages): OpenLink {
  const programPath = options.programPath ?? defaultProgramPath();
  const argument: ProgramArgument = {
    limits: options.limits,
    nativePath: options.nativePath,
    serverPid: process.pid,
  };
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
        // It sends what is no protocol, so nothing it says can be believed.
        options.log("error", "an executor broke the protocol", {
          error: error instanceof Error ? (error.stack ?? error.message) : `${error}`,
        });
        socket.removeAllListeners("data");
        socket.resume();
        child.kill("SIGKILL");
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
        try {
          setPriority(child.pid, on ? BACKGROUND_PRIORITY : constants.priority.PRIORITY_NORMAL);
          return true;
        } catch (error) {
          // It has just died, or this user may lower priorities and not raise them.
          if (error instanceof Error && "code" in error) return error.code === "ERR_SYSTEM_ERROR" && over;
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

function defaultProgramPath(): string {
  return fileURLToPath(new URL(`./program${extname(import.meta.url)}`, import.meta.url));
}

/** An unnamed file, which parent and child map. */
function openPage(random: () => number): number {
  const directory = existsSync(MEMORY_DIRECTORY) ? MEMORY_DIRECTORY : tmpdir();
  const name = `persisto-${process.pid}-${Math.floor(random() * 2 ** 48).toString(36)}`;
  const path = join(directory, name);
  const descriptor = openSync(path, "wx+", 0o600);
  unlinkSync(path);
  ftruncateSync(descriptor, PAGE_BYTES);
  return descriptor;
}
