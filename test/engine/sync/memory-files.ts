/** Files in memory, as far as the remote stage uses them: nothing that happens outside of the turns of the event loop. */
import { dirname } from "node:path";
import { type FileSystem, nodeFileSystem, type OpenFile } from "../../../src/files/file-system.ts";

export class MemoryFiles {
  readonly #files = new Map<string, Buffer>();
  /** Of the machine's only what is replaced here may be used. */
  readonly fileSystem: FileSystem = {
    ...nodeFileSystem,
    makeFolder: async () => undefined,
    list: async (path) => [...this.#files.keys()].filter((key) => dirname(key) === path),
    remove: async (path) => {
      for (const key of this.#files.keys()) if (key === path || key.startsWith(`${path}/`)) this.#files.delete(key);
    },
    openFile: async (path, mode) => {
      if (mode === "make") this.#files.set(path, Buffer.alloc(0));
      return this.#open(path);
    },
  };

  write(path: string, bytes: Buffer): void {
    this.#files.set(path, bytes);
  }

  #open(path: string): OpenFile {
    const bytes = () => {
      const found = this.#files.get(path);
      if (found === undefined) throw Object.assign(new Error(`there is no ${path}`), { code: "ENOENT" });
      return found;
    };
    bytes();
    return {
      sizeBytes: async () => bytes().length,
      read: async (offset, count) => Buffer.from(bytes().subarray(offset, offset + count)),
      write: async (offset, given) => {
        const grown = Buffer.alloc(Math.max(bytes().length, offset + given.length));
        bytes().copy(grown);
        grown.set(given, offset);
        this.#files.set(path, grown);
      },
      truncate: async (sizeBytes) => {
        this.#files.set(path, Buffer.from(bytes().subarray(0, sizeBytes)));
      },
      flush: async () => undefined,
      close: async () => undefined,
    };
  }
}
