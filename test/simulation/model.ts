/**
 * What the databases of a simulation must hold, by what their callers were told. A database is a log of writes; each loss
 * takes a suffix of it away that nobody was promised more of.
 */
import type { DurabilityLevel, HistoryTarget, Position } from "../../src/engine/engine.ts";

/** What ends a server's life. */
export type Loss = "process" | "machine" | "disk";

/** What a write outlives: nothing that is sure, the end of the process, of the machine, of the disk. */
const strengths = { unsure: 0, process: 1, machine: 2, disk: 3 } as const;
type Strength = keyof typeof strengths;

const strengthOf: Readonly<Record<DurabilityLevel, Strength>> = {
  committed: "process",
  local: "machine",
  remote: "disk",
};

export interface Write {
  readonly tag: number;
  readonly issuedAt: number;
  /** Place in the log, once it is its own. */
  n: number | undefined;
  /** The place that it has in a transaction which is not committed. */
  place: number | undefined;
  /** As it was answered. */
  position: Position | undefined;
  answeredAt: number | undefined;
  strength: Strength;
  /**
   * - `unsure`: it may come to be, or not.
   * - `kept`: it must be there.
   * - `shaken`: it was there, and a loss since then may have taken it.
   * - `gone`: it must not be there.
   */
  fate: "unsure" | "kept" | "shaken" | "gone";
}

/** A promise was broken. */
export class Violation extends Error {
  override readonly name = "Violation";
}

export class ModelDatabase {
  readonly id: string;
  readonly #writes = new Map<number, Write>();
  /** Whether it exists. */
  presence: "there" | "absent" | "unsure" = "unsure";
  /** It was deleted, and whoever has it is wrong. */
  mustBeAbsent = false;
  /** It was deleted, and the disk that knew it is lost. */
  isGhost = false;
  /** Another server has taken its history over. */
  hasRival = false;
  /** What its existence outlives. */
  strength: Strength = "unsure";
  /** The schema, as a write. */
  schema: Write | undefined;
  lineage: string | undefined;
  /** The highest that was answered in this lineage. */
  sequence = 0n;
  durableSequence = 0n;
  /** Its log as it was read last, while nothing was lost since. */
  #lastRead: readonly number[] = [];
  /** By version. */
  readonly #versions = new Map<string, string>();

  constructor(id: string) {
    this.id = id;
  }

  get writes(): Iterable<Write> {
    return this.#writes.values();
  }

  issue(tag: number, at: number): Write {
    const write: Write = {
      tag,
      issuedAt: at,
      n: undefined,
      place: undefined,
      position: undefined,
      answeredAt: undefined,
      strength: "unsure",
      fate: "unsure",
    };
    this.#writes.set(tag, write);
    return write;
  }

  /** A write was answered. */
  acknowledge(write: Write, n: number | undefined, position: Position | undefined, level: DurabilityLevel, at: number) {
    write.fate = "kept";
    write.n = n ?? write.n;
    write.position = position;
    write.answeredAt = at;
    this.#strengthen(write, strengthOf[level]);
    for (const other of this.#writes.values()) {
      if (other !== write && n !== undefined && other.n === n && other.fate !== "gone" && other.fate !== "shaken")
        throw new Violation(`${this.id}: writes ${other.tag} and ${write.tag} have the same place ${n}`);
    }
  }

  /** It failed, and was told to have had no effect. */
  refuse(write: Write): void {
    write.fate = "gone";
  }

  /** A position was answered to a call that began when `sequence` was the highest known. */
  position(position: Position, sequence: bigint, what: string): void {
    this.lineage ??= position.lineage;
    if (position.lineage !== this.lineage)
      throw new Violation(`${this.id}: ${what} answers lineage ${position.lineage} instead of ${this.lineage}`);
    if (position.sequence < sequence)
      throw new Violation(`${this.id}: ${what} answers position ${position.sequence} after ${sequence}`);
    if (position.sequence > this.sequence) this.sequence = position.sequence;
  }

  durable(position: Position | undefined): void {
    if (position === undefined || position.lineage !== this.lineage) return;
    if (position.sequence <= this.durableSequence) return;
    this.durableSequence = position.sequence;
    this.strength = "disk";
    for (const write of this.#all()) {
      const mine = write.position;
      if (mine?.lineage === this.lineage && mine.sequence <= position.sequence && write.fate === "kept")
        this.#strengthen(write, "disk");
    }
  }

  /** Everything that was answered between these is promised to outlive that much. */
  promise(strength: Strength, after: number, before: number): void {
    for (const write of this.#all()) {
      const { answeredAt } = write;
      if (write.fate === "kept" && answeredAt !== undefined && answeredAt > after && answeredAt <= before)
        this.#strengthen(write, strength);
    }
  }

  /** The server died. */
  lose(loss: Loss): void {
    const needed = strengths[loss === "process" ? "process" : loss];
    for (const write of this.#all()) {
      const isSure = write.fate === "kept" && strengths[write.strength] >= needed;
      if (!isSure && write.fate !== "gone") write.fate = "shaken";
    }
    if (strengths[this.strength] < needed && this.presence === "there") this.presence = "unsure";
    if (loss === "disk") {
      // Numbers above the last one that is stored for good were known to the lost disk alone.
      this.sequence = this.durableSequence;
    }
    this.#lastRead = [];
    this.#versions.clear();
  }

  /** Whether the schema must be there. */
  get hasSchema(): boolean {
    return this.schema?.fate === "kept";
  }

  /** A call found no table. */
  foundNoTable(): void {
    if (this.hasSchema) throw new Violation(`${this.id}: its tables are gone`);
    if (this.schema !== undefined) this.schema.fate = "gone";
    this.#settle([], this.#mustBeThere());
  }

  /** Writes that a read that begins now must see. */
  mustSee(): readonly Write[] {
    return this.#mustBeThere();
  }

  /** A read has found these; `mustSee` as it was when the read began. */
  found(tags: readonly number[], mustSee: readonly Write[]): void {
    if (this.schema !== undefined && this.schema.fate !== "kept") this.schema.fate = "kept";
    const shorter = Math.min(tags.length, this.#lastRead.length);
    for (let index = 0; index < shorter; index++) {
      if (tags[index] !== this.#lastRead[index])
        throw new Violation(
          `${this.id}: its log has changed at ${index + 1}: ${tags.join(",")}, it was ${this.#lastRead.join(",")}`,
        );
    }
    this.#settle(tags, mustSee);
    if (tags.length > this.#lastRead.length) this.#lastRead = tags;
  }

  /** The same version must have been seen with the same content. */
  version(version: string, content: string): void {
    const known = this.#versions.get(version);
    if (known !== undefined && known !== content)
      throw new Violation(`${this.id}: version ${version} stands for two contents`);
    this.#versions.set(version, content);
  }

  /** What a restore or fork to that point may bring. */
  checkPoint(tags: readonly number[], { position }: HistoryTarget): void {
    const found = new Set(tags);
    for (const { n = 0, tag, fate } of this.#writes.values())
      if (fate === "kept" && n > 0 && n <= tags.length && tags[n - 1] !== tag)
        throw new Violation(`${this.id}: a restore has ${tags[n - 1]} at ${n}, not ${tag}`);
    if (position === undefined || position.lineage !== this.lineage) return;
    const { sequence } = position;
    for (const { position: mine, tag, fate } of this.#writes.values()) {
      if (mine?.lineage !== position.lineage || fate !== "kept") continue;
      if (mine.sequence <= sequence && !found.has(tag))
        throw new Violation(`${this.id}: restored to ${sequence}, write ${tag} of ${mine.sequence} is missing`);
      // A commit may be in the batch before the one that was answered.
      if (mine.sequence > sequence + 1n && found.has(tag))
        throw new Violation(`${this.id}: restored to ${sequence}, write ${tag} of ${mine.sequence} is there`);
    }
  }

  /** A restore or fork to a point before the first table. */
  static restoredEmpty(
    id: string,
    lineage: string,
    { from, target: { position } }: { readonly from: ModelDatabase; readonly target: HistoryTarget },
  ): ModelDatabase {
    const made = new ModelDatabase(id);
    made.presence = "there";
    made.strength = "disk";
    made.lineage = lineage;
    const first = from.schema?.fate === "kept" ? from.schema.position : undefined;
    if (position !== undefined && first?.lineage === position.lineage && first.sequence <= position.sequence)
      throw new Violation(`${id}: restored to ${position.sequence}, the tables of ${first.sequence} are missing`);
    return made;
  }

  /** A database whose history is the beginning of another's. */
  static restored(id: string, lineage: string, tags: readonly number[], from: ModelDatabase): ModelDatabase {
    const made = new ModelDatabase(id);
    made.presence = "there";
    made.strength = "disk";
    made.lineage = lineage;
    if (from.schema !== undefined)
      made.schema = { ...from.schema, position: undefined, strength: "disk", fate: "kept" };
    for (const [index, tag] of tags.entries()) {
      const write = from.#writes.get(tag);
      if (write === undefined) throw new Violation(`${id}: a restore has brought write ${tag}, which never was`);
      made.#writes.set(tag, { ...write, n: index + 1, position: undefined, fate: "kept", strength: "disk" });
    }
    return made;
  }

  #mustBeThere(): Write[] {
    return [...this.#writes.values()].filter(({ fate }) => fate === "kept");
  }

  /** What was read is what there is: who is in doubt is so no more, unless it began after the read. */
  #settle(tags: readonly number[], mustSee: readonly Write[]): void {
    const places = new Map(tags.map((tag, index) => [tag, index + 1]));
    for (const write of mustSee) {
      // Its fate may have changed since the read began: then the caller knows.
      if (write.fate === "kept" && !places.has(write.tag))
        throw new Violation(
          `${this.id}: write ${write.tag} is lost (position ${write.position?.sequence}, outlives: ${write.strength}, place ${write.n}); found ${tags.join(",")}`,
        );
    }
    for (const [tag, n] of places) {
      const write = this.#writes.get(tag);
      if (write === undefined) throw new Violation(`${this.id}: write ${tag} was never made`);
      if (write.fate === "gone") throw new Violation(`${this.id}: write ${tag} is there, which was refused or lost`);
      if (write.n !== undefined && write.n !== n)
        throw new Violation(`${this.id}: write ${tag} is at ${n} and not at ${write.n}`);
      write.n = n;
      write.fate = "kept";
      if (write.strength === "unsure") write.strength = "process";
    }
    for (const write of this.#writes.values()) {
      if (places.has(write.tag)) continue;
      if (write.fate === "shaken") write.fate = "gone";
    }
    let previous: Write | undefined;
    for (const tag of tags) {
      const write = this.#writes.get(tag);
      if (write === undefined) continue;
      if (previous !== undefined && write.answeredAt !== undefined && write.answeredAt < previous.issuedAt)
        throw new Violation(`${this.id}: write ${tag} was answered before ${previous.tag} began, and comes after it`);
      previous = write;
    }
  }

  #strengthen(write: Write, strength: Strength): void {
    if (strengths[strength] > strengths[write.strength]) write.strength = strength;
  }

  *#all(): Iterable<Write> {
    if (this.schema !== undefined) yield this.schema;
    yield* this.#writes.values();
  }
}
