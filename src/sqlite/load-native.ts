import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type Database from "better-sqlite3";
import type { Native } from "./native.ts";

/** The native library is missing or does not fit this machine; the message says what to install. */
export class NativeLibraryError extends Error {
  override readonly name = "NativeLibraryError";
}

/** What the library does where SQLite is not loaded into it: the server process needs no more. */
export type SharedPages = Pick<Native, "sharedPage">;

const FILE = "persisto.node";

/** Beside a built program or above it; in a source checkout where `make` puts it. */
const PLACES = ["./", "../", "../../build/"];

const require = createRequire(import.meta.url);
const loaded = new Map<string, Native>();
const intoSqlite = new Set<string>();

function findLibrary(): string {
  const paths = PLACES.map((place) => fileURLToPath(new URL(`${place}${FILE}`, import.meta.url)));
  const found = paths.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new NativeLibraryError(
    `${FILE} is missing. Install a C compiler (Debian: apt-get install build-essential; macOS: xcode-select --install) ` +
      `and run make, or put a built one at ${paths[0]}`,
  );
}

function load(path: string): Native {
  let native = loaded.get(path);
  if (native === undefined) {
    try {
      native = require(path) as Native;
    } catch (cause) {
      throw new NativeLibraryError(`${path} does not load on this machine; build it again with make`, { cause });
    }
    loaded.set(path, native);
  }
  return native;
}

/**
 * Loads the library into SQLite, once, and returns it: every connection opened from then on can be taken by `connect`.
 * `path`: the library's file; found by itself when left out. Throws a NativeLibraryError.
 */
export function loadNative(database: typeof Database, path: string = findLibrary()): Native {
  const native = load(path);
  if (!intoSqlite.has(path)) {
    const connection = new database(":memory:");
    try {
      connection.loadExtension(path);
    } finally {
      connection.close();
    }
    intoSqlite.add(path);
  }
  return native;
}

/** The library without SQLite. Throws a NativeLibraryError. */
export function loadSharedPages(path: string = findLibrary()): SharedPages {
  return load(path);
}
