/** What was last known to be stored under a prefix, by whatever object of this server knew it. It may be wrong by now. */
import type { ReplicaFile } from "../ltx/replica.ts";
import type { ReplicaFiles } from "./replica-files.ts";

export class FileHints {
  readonly #countMax: number;
  /** The one that was not used for the longest time first. */
  readonly #known = new Map<string, ReplicaFiles>();

  constructor(countMax: number) {
    this.#countMax = countMax;
  }

  get(prefix: string): readonly ReplicaFile[] {
    return this.#known.get(prefix)?.all ?? [];
  }

  set(prefix: string, files: ReplicaFiles): void {
    this.#known.delete(prefix);
    this.#known.set(prefix, files);
    if (this.#known.size <= this.#countMax) return;
    for (const oldest of this.#known.keys()) {
      this.#known.delete(oldest);
      return;
    }
  }

  delete(prefix: string): void {
    this.#known.delete(prefix);
  }
}
