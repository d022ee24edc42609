/**
 * Keeps apart what copies frames back into a database file and what reads the file as it is. A WAL may start over while the
 * file is read, for then all of it was copied back before; the file itself must stay.
 */
export class CopyLock {
  #images = 0;
  #copying: Promise<void> | undefined;

  /** Waits for the copying that is under way; none begins until the result is called. */
  async image(): Promise<() => void> {
    this.#images++;
    while (this.#copying !== undefined) await this.#copying;
    let isHeld = true;
    return () => {
      if (isHeld) this.#images--;
      isHeld = false;
    };
  }

  /** Undefined when the file is being read: to be tried again later. One at a time. */
  copy<T>(run: () => Promise<T>): Promise<T> | undefined {
    if (this.#images > 0) return undefined;
    const copied = run();
    this.#copying = copied.then(
      () => this.#end(),
      () => this.#end(),
    );
    return copied;
  }

  #end(): void {
    this.#copying = undefined;
  }
}
