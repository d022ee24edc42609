/** Replicas of which it is known what is stored, so that nothing has to be listed before the next batch. */
import type { RemoteReplica } from "../../stages/remote.ts";

/** Replicas kept; what is stored of others is asked for again when they are needed. */
const replicaCountMax = 10_000;

export class Replicas {
  /** By database; the one that was not needed for the longest time first. */
  readonly #byId = new Map<string, RemoteReplica>();

  /** Undefined when it is not known, or of another history. */
  get(id: string, prefix: string): RemoteReplica | undefined {
    const replica = this.#byId.get(id);
    if (replica?.prefix !== prefix) return undefined;
    this.keep(id, replica);
    return replica;
  }

  /** The same, whatever history it is of, and without counting as a need. */
  peek(id: string): RemoteReplica | undefined {
    return this.#byId.get(id);
  }

  keep(id: string, replica: RemoteReplica): void {
    this.#byId.delete(id);
    this.#byId.set(id, replica);
    if (this.#byId.size <= replicaCountMax) return;
    const [oldest] = this.#byId.keys();
    if (oldest !== undefined) this.#byId.delete(oldest);
  }

  forget(id: string): void {
    this.#byId.delete(id);
  }
}
