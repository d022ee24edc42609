/** Certificate, key and client authority from files, read again when one of them changes. */
import { readFile, stat } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import type { Clock } from "../clock.ts";
import type { TlsOptions } from "./transport.ts";

const lookIntervalMs = 1_000;

/** PEM texts, as Node's TLS takes them. */
export interface CertificateContents {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca?: Buffer;
}

/** Thrown when the files can be read but not used together. */
export class CertificateError extends Error {
  override readonly name = "CertificateError";
}

export class Certificates {
  current: CertificateContents;
  onChange: ((contents: CertificateContents) => void) | undefined = undefined;
  readonly #files: TlsOptions;
  readonly #onProblem: ((message: string, error: unknown) => void) | undefined;
  readonly #stop: () => void;
  #stamp: string;
  #looking = false;

  private constructor(
    files: TlsOptions,
    contents: CertificateContents,
    stamp: string,
    clock: Clock,
    onProblem: ((message: string, error: unknown) => void) | undefined,
  ) {
    this.#files = files;
    this.current = contents;
    this.#stamp = stamp;
    this.#onProblem = onProblem;
    this.#stop = clock.every(lookIntervalMs, () => void this.#look());
  }

  /** Reads and checks the files; rejects when they do not fit together. */
  static async open(
    files: TlsOptions,
    clock: Clock,
    onProblem: ((message: string, error: unknown) => void) | undefined,
  ): Promise<Certificates> {
    const stamp = await stampOf(files);
    return new Certificates(files, await read(files), stamp, clock, onProblem);
  }

  close(): void {
    this.#stop();
  }

  async #look(): Promise<void> {
    if (this.#looking) return;
    this.#looking = true;
    try {
      const stamp = await stampOf(this.#files);
      if (stamp !== this.#stamp) {
        this.#stamp = stamp; // one report a change
        const contents = await read(this.#files);
        this.current = contents;
        this.onChange?.(contents);
      }
    } catch (error) {
      // Half-written files: the old certificate stays, and the next change is tried again.
      this.#onProblem?.("the TLS files changed and cannot be used; the certificate of before stays", error);
    } finally {
      this.#looking = false;
    }
  }
}

function pathsOf(files: TlsOptions): string[] {
  return [files.certificatePath, files.keyPath, ...(files.clientCaPath === undefined ? [] : [files.clientCaPath])];
}

async function stampOf(files: TlsOptions): Promise<string> {
  const stats = await Promise.all(pathsOf(files).map((path) => stat(path)));
  return stats.map((one) => `${one.ino}:${one.size}:${one.mtimeMs}`).join(" ");
}

async function read(files: TlsOptions): Promise<CertificateContents> {
  const [cert, key, ca] = await Promise.all(pathsOf(files).map((path) => readFile(path)));
  if (cert === undefined || key === undefined) throw new CertificateError("certificate and key are both needed");
  const contents = { cert, key, ...(ca === undefined ? {} : { ca }) };
  try {
    createSecureContext(contents);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new CertificateError(`${pathsOf(files).join(", ")} cannot be used together as PEM files for TLS: ${reason}`, {
      cause,
    });
  }
  return contents;
}
