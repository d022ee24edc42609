import type { OnFrame } from "./frames.ts";

/** What comes from an executor. */
export interface LinkEvents {
  frame: OnFrame;
  /** After the frames of one read: a good moment to send more. */
  turn(): void;
  /** It is dead for certain: its locks are gone and nothing comes after this. `how` is a signal's name or a sentence. */
  exit(how: string): void;
}

/** A way to one executor. */
export interface ExecutorLink {
  /** The words of protocol.ts, shared with it. */
  readonly words: Int32Array;
  write(parts: readonly Buffer[]): void;
  /** Ends it in the midst of whatever it does. */
  kill(): void;
  /** Ends it after what it was sent. */
  end(): void;
}

export type OpenLink = (events: LinkEvents) => ExecutorLink;
