/** What was last known to be stored under a prefix, by whatever object of this server knew it. It may be wrong by now. */
import type { ReplicaFile } from "../ltx/replica.ts";
import type { ReplicaFiles } from "./replica-files.ts";

interface Hint {
  readonly files: ReplicaFiles;
  /** How many there were when it was counted. */
  readonly fileCount: number;
}

/** Bounded by the number of files, over all prefixes. */
export class FileHints {
  readonly #fileCountMax: number;
  /** The one that was not used for the longest time first. */
  readonly #known = new Map<string, Hint>();
  #fileCount = 0;

  constructor(fileCountMax: number) {
    this.#fileCountMax = fileCountMax;
  }

  get(prefix: string): readonly ReplicaFile[] {
    return this.#known.get(prefix)?.files.all ?? [];
  }

  set(prefix: string, files: ReplicaFiles): void {
    this.delete(prefix);
    const hint = { files, fileCount: files.all.length };
    this.#known.set(prefix, hint);
    this.#fileCount += hint.fileCount;
    for (const oldest of this.#known.keys()) {
      if (this.#fileCount <= this.#fileCountMax) return;
      this.delete(oldest);
    }
  }

  delete(prefix: string): void {
    const hint = this.#known.get(prefix);
    if (hint === undefined) return;
    this.#known.delete(prefix);
    this.#fileCount -= hint.fileCount;
  }
}
