/** Executors without processes: the same pool and the same executor, talking in memory. Nothing here survives a crash of SQLite. */
import Database from "better-sqlite3";
import type { Executors } from "./executor.ts";
import type { OpenLink } from "./executor-link.ts";
import { FrameReader } from "./frames.ts";
import { Host } from "./host.ts";
import { loadNative } from "./load-native.ts";
import type { ExecutorsOptions } from "./options.ts";
import { Pool } from "./pool.ts";
import { FRAME_BYTES_MAX, PAGE_BYTES } from "./protocol.ts";

/** One executor in this process, however many the limits ask for: SQLite has one thread here anyway. */
export async function startInProcessExecutors(options: ExecutorsOptions): Promise<Executors> {
  const limits = { ...options.limits, executorCountMin: 1, executorCountMax: 1 };
  const pool = new Pool({ ...options, limits }, memoryLink({ ...options, limits }));
  await pool.start();
  return pool;
}

function memoryLink(options: ExecutorsOptions): OpenLink {
  return (events) => {
    const page = new ArrayBuffer(PAGE_BYTES);
    const reader = new FrameReader(FRAME_BYTES_MAX, events.frame);
    let over = false;
    const exit = (how: string): void => {
      if (over) return;
      over = true;
      host.close();
      events.exit(how);
    };
    const host = new Host({
      Database,
      native: loadNative(Database, options.nativePath),
      limits: options.limits,
      clock: options.clock,
      page,
      write(parts) {
        setImmediate(() => {
          if (over) return;
          try {
            for (const part of parts) reader.push(part);
          } catch (error) {
            events.broken(error);
          }
          events.turn();
        });
      },
    });
    host.hello({ sqliteVersion: sqliteVersion() });
    return {
      page,
      write(parts) {
        setImmediate(() => {
          if (!over) host.receive(Buffer.concat(parts));
        });
      },
      setBackground: () => true,
      kill: () => setImmediate(exit, "SIGKILL"),
      end: () => setImmediate(exit, "exit code 0"),
    };
  };
}

function sqliteVersion(): string {
  const memory = new Database(":memory:");
  try {
    return memory.prepare("SELECT sqlite_version()").pluck().get() as string;
  } finally {
    memory.close();
  }
}
