/** Queues of many owners, served in turn: one owner's long queue delays another's call by one call. */
export class FairQueue<Owner extends object, Item> {
  /**
   * Kept as long as their owners. A Map from which owners come and go leaves its outgrown tables behind, each pointing at
   * the next and at the items of its time: one of them in the old generation keeps all later ones from being collected young.
   */
  readonly #queues = new WeakMap<Owner, Item[]>();
  /** Those that are not empty, the next turn first. */
  #turns: Item[][] = [];
  #size = 0;

  get size(): number {
    return this.#size;
  }

  push(owner: Owner, item: Item): void {
    let queue = this.#queues.get(owner);
    if (queue === undefined) {
      queue = [];
      this.#queues.set(owner, queue);
    }
    if (queue.length === 0) this.#turns.push(queue);
    queue.push(item);
    this.#size++;
  }

  shift(): Item | undefined {
    const [queue] = this.#turns;
    if (queue === undefined) return undefined;
    const item = queue.shift();
    this.#size--;
    if (queue.length === 0) this.#turns.shift();
    else if (this.#turns.length > 1) {
      this.#turns.shift();
      this.#turns.push(queue);
    }
    return item;
  }

  /** Takes everything out, owner by owner. */
  drain(): Item[] {
    return this.remove(() => true);
  }

  /** Takes out what `unwanted` says, which sees each item once. */
  remove(unwanted: (item: Item) => boolean): Item[] {
    const removed: Item[] = [];
    for (const queue of this.#turns) {
      const kept = queue.filter((item) => {
        if (!unwanted(item)) return true;
        removed.push(item);
        return false;
      });
      queue.splice(0, queue.length, ...kept);
    }
    this.#turns = this.#turns.filter(({ length }) => length > 0);
    this.#size -= removed.length;
    return removed;
  }
}
