/** Queues of many owners, served in turn: one owner's long queue delays another's call by one call. */
export class FairQueue<Owner, Item> {
  readonly #queues = new Map<Owner, Item[]>();
  #size = 0;

  get size(): number {
    return this.#size;
  }

  push(owner: Owner, item: Item): void {
    const queue = this.#queues.get(owner);
    if (queue === undefined) this.#queues.set(owner, [item]);
    else queue.push(item);
    this.#size++;
  }

  /** Puts it before everything else of its owner. */
  unshift(owner: Owner, item: Item): void {
    const queue = this.#queues.get(owner);
    if (queue === undefined) this.#queues.set(owner, [item]);
    else queue.unshift(item);
    this.#size++;
  }

  shift(): Item | undefined {
    const first = this.#queues.entries().next();
    if (first.done) return undefined;
    const [owner, queue] = first.value;
    const item = queue.shift();
    this.#size--;
    if (queue.length === 0) this.#queues.delete(owner);
    else if (this.#queues.size > 1) {
      // A map keeps the order of insertion: whoever was served goes behind the others.
      this.#queues.delete(owner);
      this.#queues.set(owner, queue);
    }
    return item;
  }

  /** Takes everything out, owner by owner. */
  drain(): Item[] {
    const items = [...this.#queues.values()].flat();
    this.#queues.clear();
    this.#size = 0;
    return items;
  }

  /** Takes out what `unwanted` says, which sees each item once. */
  remove(unwanted: (item: Item) => boolean): Item[] {
    const removed: Item[] = [];
    for (const [owner, queue] of this.#queues) {
      const kept = queue.filter((item) => {
        if (!unwanted(item)) return true;
        removed.push(item);
        return false;
      });
      if (kept.length === 0) this.#queues.delete(owner);
      else if (kept.length < queue.length) this.#queues.set(owner, kept);
    }
    this.#size -= removed.length;
    return removed;
  }
}
