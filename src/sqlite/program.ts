/**
 * The executor program. Its server starts it with a socket as descriptor 3, a shared page as descriptor 4, and its limits as
 * the only argument. It ends when the socket does.
 */
import { Socket } from "node:net";
import Database from "better-sqlite3";
import { systemClock } from "../clock.ts";
import type { ExecutorLimits } from "./executor.ts";
import { FRAME_LENGTH_BYTES } from "./frames.ts";
import { Host } from "./host.ts";
import { loadNative } from "./load-native.ts";
import { ANSWER_HEADER_BYTES, ANSWER_KIND, ANSWER_UNFIT, PAGE_BYTES, WORD_CANCEL, WORD_RUNNING } from "./protocol.ts";

/** What the server passes as the program's argument. */
export interface ProgramArgument {
  readonly limits: ExecutorLimits;
  readonly nativePath: string | undefined;
  readonly serverPid: number;
}

const SOCKET_DESCRIPTOR = 3;
const PAGE_DESCRIPTOR = 4;

// Whoever signals all processes of a service means the server; it still needs its executors while it drains.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);

const socket = new Socket({ fd: SOCKET_DESCRIPTOR, readable: true, writable: true });

try {
  start();
} catch (error) {
  const text = Buffer.from(error instanceof Error ? error.message : `${error}`);
  const frame = Buffer.alloc(FRAME_LENGTH_BYTES + ANSWER_HEADER_BYTES + text.length);
  frame.writeUInt32LE(ANSWER_HEADER_BYTES + text.length, 0);
  frame[FRAME_LENGTH_BYTES + ANSWER_KIND] = ANSWER_UNFIT;
  frame.set(text, FRAME_LENGTH_BYTES + ANSWER_HEADER_BYTES);
  socket.end(frame, () => process.exit(1));
}

function start(): void {
  const argument = JSON.parse(process.argv[2] ?? "") as ProgramArgument;
  const native = loadNative(Database, argument.nativePath);
  // A statement that cannot be interrupted would keep the write lock from the next server.
  native.exitWithParent(argument.serverPid);
  const page = native.sharedPage(PAGE_DESCRIPTOR, PAGE_BYTES);
  native.watch(page, WORD_RUNNING, WORD_CANCEL);
  const host = new Host({
    Database,
    native,
    limits: argument.limits,
    clock: systemClock,
    page,
    write(parts) {
      if (parts.length > 1) socket.cork();
      for (const part of parts) socket.write(part);
      if (parts.length > 1) socket.uncork();
    },
  });
  const end = (): never => {
    host.close();
    process.exit(0);
  };
  socket.on("data", (chunk: Buffer) => host.receive(chunk));
  socket.on("end", end);
  socket.on("close", end);
  // The server is gone; whatever is the matter with the socket, "close" follows.
  socket.on("error", () => undefined);
  const memory = new Database(":memory:");
  const sqliteVersion = memory.prepare("SELECT sqlite_version()").pluck().get() as string;
  memory.close();
  host.hello({ sqliteVersion });
}
