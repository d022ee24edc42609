/**
 * The folder of the local stage:
 *
 *   databases/<id>/db.sqlite (-wal, -shm)   the database
 *   databases/<id>/database.json            its facts
 *   databases/.new-<random>/                being made; the rename to <id> is the moment of creation
 *   databases/<id>/log/                     its log, see log/log-folder.ts
 *   databases/.dropped-<random>/            being removed: the database is in the remote stage, or was never there
 *   databases/.deleted-<random>/            being removed; the rename to it is the moment of deletion. Of a database with a
 *                                           remote copy database.json stays there until that copy is gone
 */
import { dirname, join } from "node:path";
import { type FailPoints, noFailPoints } from "../fail-points.ts";
import type { FileSystem } from "../files/file-system.ts";
import { type Facts, readFacts, writeFacts } from "./facts.ts";
import { isDatabaseId } from "./names.ts";

/** First bytes of every database file. */
const sqliteMagic = Buffer.from("SQLite format 3\0", "latin1");

/** What stands in the folder of one database. */
export interface FoundDatabase {
  /** Undefined when database.json is missing or damaged. */
  readonly facts: Facts | undefined;
  /** False when there is no file that SQLite could open. */
  readonly hasData: boolean;
  readonly sizeBytes: number;
  readonly createTimeMs: number;
}

/** A place for a database file without a name. `read` when nobody has it open. */
export interface Scratch {
  readonly filePath: string;
  read(): Promise<Buffer | undefined>;
  remove(): Promise<void>;
}

/** What is left of a deleted database while its remote copy is not gone. */
export interface DeletedTrace {
  readonly facts: Facts;
  /** Removes everything but the trace itself. */
  free(): Promise<void>;
  /** Removes the trace. */
  remove(): Promise<void>;
}

export class Folder {
  readonly #root: string;
  readonly #fileSystem: FileSystem;
  readonly #randomName: () => string;
  readonly #failPoints: FailPoints;
  readonly #traces: DeletedTrace[] = [];

  /** `randomName`: text of [a-z0-9] that no other call gets. */
  constructor(
    directoryPath: string,
    fileSystem: FileSystem,
    randomName: () => string,
    failPoints: FailPoints = noFailPoints,
  ) {
    this.#root = join(directoryPath, "databases");
    this.#fileSystem = fileSystem;
    this.#randomName = randomName;
    this.#failPoints = failPoints;
  }

  /** Path of a database's file. The id must have passed `isDatabaseId`. */
  filePath(id: string): string {
    return join(this.#path(id), "db.sqlite");
  }

  /** Path of the folder of a database's log. */
  logPath(id: string): string {
    return join(this.#path(id), "log");
  }

  /**
   * Makes what is missing, and removes what an interrupted creation or deletion has left, except traces: see `traces`.
   * Returns the ids that are there.
   */
  async open(onStray: (name: string) => void): Promise<string[]> {
    await this.#fileSystem.makeFolder(this.#root);
    await this.#fileSystem.flushFolder(dirname(this.#root));
    const ids: string[] = [];
    for (const name of await this.#fileSystem.list(this.#root)) {
      const path = join(this.#root, name);
      if (isDatabaseId(name)) ids.push(name);
      else if (/^\.deleted-[a-z0-9]+$/.test(name)) await this.#openDeleted(path);
      else if (/^\.(?:new|dropped)-[a-z0-9]+$/.test(name)) await this.#fileSystem.remove(path);
      else onStray(name);
    }
    return ids;
  }

  /** Databases that were deleted and whose remote copies may be there still, as `open` found them. */
  get traces(): readonly DeletedTrace[] {
    return this.#traces;
  }

  async #openDeleted(path: string): Promise<void> {
    const facts = await readFacts(this.#fileSystem, join(path, "database.json"));
    if (facts === undefined) {
      await this.#fileSystem.remove(path);
      return;
    }
    const trace = this.#trace(facts, path);
    await trace.free();
    this.#traces.push(trace);
  }

  /** A fresh place for a database file that never gets a name; the next start sweeps it when nobody does. */
  async scratch(): Promise<Scratch> {
    const path = join(this.#root, `.new-${this.#randomName()}`);
    const filePath = join(path, "db.sqlite");
    await this.#fileSystem.makeFolder(path);
    return {
      filePath,
      read: () => this.#fileSystem.read(filePath),
      remove: () => this.#fileSystem.remove(path),
    };
  }

  /** Makes a database of the bytes of an empty one. Whole and on the disk when it resolves; nothing is left when it rejects. */
  create(facts: Facts, emptyDatabase: Uint8Array): Promise<void> {
    return this.make(facts.id, async (path) => {
      await this.#fileSystem.writeFlushed(path, emptyDatabase);
      return facts;
    });
  }

  /**
   * Makes a database of the file that `fill` writes and flushes, with the facts that it gives; `onNamed` is called when it has
   * its name, which may not be on the disk yet. The same promise as `create`.
   */
  async make(id: string, fill: (filePath: string) => Promise<Facts>, onNamed?: () => void): Promise<void> {
    const path = join(this.#root, `.new-${this.#randomName()}`);
    try {
      await this.#fileSystem.makeFolder(path);
      const facts = await fill(join(path, "db.sqlite"));
      await writeFacts(this.#fileSystem, join(path, "database.json"), facts);
      this.#failPoints.reach("create.made");
      await this.#fileSystem.rename(path, this.#path(id));
    } catch (error) {
      await this.#fileSystem.remove(path);
      throw error;
    }
    onNamed?.();
    this.#failPoints.reach("create.named");
    try {
      await this.#fileSystem.flushFolder(this.#root);
      this.#failPoints.reach("create.end");
    } catch (error) {
      // Whether the name would last is not known: back, or the next start finds a database that nobody was told of.
      await this.#fileSystem.rename(this.#path(id), path);
      await this.#fileSystem.remove(path);
      throw error;
    }
  }

  /**
   * Takes the name away: from here on nothing of the database is here, whatever happens. It lives on in the remote stage, or is
   * deleted and was never there. Returns what frees its files.
   */
  async drop(id: string): Promise<() => Promise<void>> {
    const path = join(this.#root, `.dropped-${this.#randomName()}`);
    await this.#takeName(id, path);
    return () => this.#fileSystem.remove(path);
  }

  /** Deletes a database that may have a remote copy, and a folder or none: a trace is kept that names what has to go. */
  async deleteKeepingTrace(facts: Facts): Promise<DeletedTrace> {
    const path = join(this.#root, `.deleted-${this.#randomName()}`);
    if ((await this.#fileSystem.list(this.#path(facts.id))).length === 0) return this.keepTrace(facts);
    await this.#takeName(facts.id, path);
    return this.#trace(facts, path);
  }

  /** A trace alone, of what never had a folder here: on the disk when it resolves. */
  async keepTrace(facts: Facts): Promise<DeletedTrace> {
    const path = join(this.#root, `.deleted-${this.#randomName()}`);
    try {
      await this.#fileSystem.makeFolder(path);
      await writeFacts(this.#fileSystem, join(path, "database.json"), facts);
      await this.#fileSystem.flushFolder(this.#root);
    } catch (error) {
      // The next start would take away what nobody was told to be gone.
      await this.#fileSystem.remove(path);
      throw error;
    }
    return this.#trace(facts, path);
  }

  async #takeName(id: string, path: string): Promise<void> {
    await this.#fileSystem.rename(this.#path(id), path);
    this.#failPoints.reach("delete.named");
    try {
      await this.#fileSystem.flushFolder(this.#root);
    } catch (error) {
      // Back: who is told that it failed finds the database as it was.
      await this.#fileSystem.rename(path, this.#path(id));
      throw error;
    }
    this.#failPoints.reach("delete.end");
  }

  #trace(facts: Facts, path: string): DeletedTrace {
    return {
      facts,
      free: async () => {
        for (const name of await this.#fileSystem.list(path)) {
          if (name !== "database.json") await this.#fileSystem.remove(join(path, name));
        }
      },
      remove: () => this.#fileSystem.remove(path),
    };
  }

  writeFacts(facts: Facts): Promise<void> {
    return writeFacts(this.#fileSystem, join(this.#path(facts.id), "database.json"), facts, this.#failPoints);
  }

  /** Looks at a database that nobody has open. */
  async inspect(id: string): Promise<FoundDatabase> {
    const filePath = this.filePath(id);
    const facts = await readFacts(this.#fileSystem, join(this.#path(id), "database.json"), id);
    const start = await this.#fileSystem.readStart(filePath, sqliteMagic.length);
    return {
      facts,
      hasData: start?.equals(sqliteMagic) ?? false,
      sizeBytes: this.sizeBytes(id),
      createTimeMs: facts?.createTimeMs ?? (await this.#fileSystem.createTimeMs(filePath)) ?? 0,
    };
  }

  /** Bytes of the database's file in this folder and of its WAL. */
  sizeBytes(id: string): number {
    return this.sizeBytesOf(this.filePath(id));
  }

  /** Bytes of a database file, wherever it is, and of its WAL. */
  sizeBytesOf(path: string): number {
    return this.#fileSystem.sizeBytes(path) + this.#fileSystem.sizeBytes(`${path}-wal`);
  }

  #path(id: string): string {
    return join(this.#root, id);
  }
}
