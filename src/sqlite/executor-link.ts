import type { OnFrame } from "./frames.ts";

/** What comes from an executor. */
export interface LinkEvents {
  frame: OnFrame;
  /** After the frames of one read: a good moment to send more. */
  turn(): void;
  /** What came is no protocol; nothing more is read. */
  broken(error: unknown): void;
  /** It is dead for certain: its locks are gone and nothing comes after this. `how` is a signal's name or a sentence. */
  exit(how: string): void;
}

/** A way to one executor. */
export interface ExecutorLink {
  /** Memory shared with it: PAGE_BYTES, laid out as protocol.ts says. */
  readonly page: ArrayBuffer;
  write(parts: readonly Buffer[]): void;
  /** Lets others have the processor first; taking that back may not be allowed, then it returns false. */
  setBackground(on: boolean): boolean;
  /** Ends it in the midst of whatever it does. */
  kill(): void;
  /** Ends it after what it was sent. */
  end(): void;
}

export type OpenLink = (events: LinkEvents) => ExecutorLink;
