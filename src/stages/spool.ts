/** LTX files that are being made for the object store: in memory while they are small, else in a local file without a name that lasts. */
import { join } from "node:path";
import type { FileSystem, OpenFile } from "../files/file-system.ts";
import type { LtxFileSummary } from "../ltx/encoder.ts";
import type { ObjectSource } from "../objects/object-store.ts";
import { fileSource } from "./local-bytes.ts";

/** A whole file to be put. */
export interface Spooled {
  readonly summary: LtxFileSummary;
  readonly body: Uint8Array | ObjectSource;
  /** Lets go of it. */
  discard(): Promise<void>;
}

const memoryBytesMax = 2 * 1024 * 1024;

export class Spool {
  readonly #directoryPath: string;
  readonly #fileSystem: FileSystem;
  #prepared: Promise<void> | undefined;
  #count = 0;

  /** The folder is this object's own. */
  constructor(directoryPath: string, fileSystem: FileSystem) {
    this.#directoryPath = directoryPath;
    this.#fileSystem = fileSystem;
  }

  /** A path that nobody else has. Remove what is put there. */
  async path(): Promise<string> {
    this.#prepared ??= this.#prepare();
    await this.#prepared;
    return join(this.#directoryPath, `${++this.#count}`);
  }

  /**
   * Removes what a process that died has left. Not before the first file: two servers may begin to start on one folder, and
   * the one that has to give up must not touch it.
   */
  async #prepare(): Promise<void> {
    await this.#fileSystem.remove(this.#directoryPath);
    await this.#fileSystem.makeFolder(this.#directoryPath);
  }

  /** Takes in a file in chunks. Rejects with what its maker throws; then nothing is left. */
  async take(chunks: AsyncGenerator<Uint8Array, LtxFileSummary, undefined>): Promise<Spooled> {
    const held: Uint8Array[] = [];
    let byteCount = 0;
    let path: string | undefined;
    let file: OpenFile | undefined;
    const discard = async () => {
      await file?.close();
      if (path !== undefined) await this.#fileSystem.remove(path);
    };
    try {
      for (;;) {
        const { done, value } = await chunks.next();
        if (done === true) {
          const body = file === undefined ? Buffer.concat(held) : fileSource(file, byteCount);
          return { summary: value, body, discard };
        }
        if (file === undefined && byteCount + value.length > memoryBytesMax) {
          path = await this.path();
          file = await this.#fileSystem.openFile(path, "make");
          await file.write(0, Buffer.concat(held.splice(0)));
        }
        if (file === undefined) held.push(value);
        else await file.write(byteCount, value);
        byteCount += value.length;
      }
    } catch (error) {
      await chunks.return(undefined as never);
      await discard();
      throw error;
    }
  }
}
