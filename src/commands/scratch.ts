/** A folder for what a command needs on the disk for a while. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { FileSystem } from "../files/file-system.ts";
import { CommandError } from "./command.ts";

/** What stays free for others. */
const spareBytes = 64 * 1024 * 1024;

export class Scratch {
  readonly path: string;
  readonly #fileSystem: FileSystem;

  private constructor(path: string, fileSystem: FileSystem) {
    this.path = path;
    this.#fileSystem = fileSystem;
  }

  /** In the local folder, which has room for databases; in the system's temporary folder where there is none. */
  static async open(localDirectoryPath: string, fileSystem: FileSystem): Promise<Scratch> {
    const hasLocal = (await fileSystem.list(localDirectoryPath)).length > 0;
    return new Scratch(await mkdtemp(join(hasLocal ? localDirectoryPath : tmpdir(), "scratch-")), fileSystem);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** Rejects with CommandError unless so many bytes fit. */
  async needs(byteCount: number): Promise<void> {
    const { freeBytes } = await this.#fileSystem.space(this.path);
    if (freeBytes >= byteCount + spareBytes) return;
    throw new CommandError(`${this.path} has ${freeBytes} bytes free, and ${byteCount + spareBytes} are needed`);
  }

  /** Empties it for the next database. */
  async clear(): Promise<void> {
    for (const name of await this.#fileSystem.list(this.path)) await this.#fileSystem.remove(join(this.path, name));
  }

  async close(): Promise<void> {
    await rm(this.path, { recursive: true, force: true });
  }
}
