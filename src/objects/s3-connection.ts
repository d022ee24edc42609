/** Requests to one bucket: the client, and the bounds around each request. */
import type * as Sdk from "@aws-sdk/client-s3";
import type { Clock } from "../clock.ts";
import { bounded, pause } from "./bounded.ts";
import { Limiter } from "./limiter.ts";
import { type ObjectCall, ObjectStoreError, SourceFailure } from "./object-store.ts";
import { isThrottling, readS3Error, s3Failure } from "./s3-errors.ts";
import { md5 } from "./s3-wire.ts";

export interface S3Limits {
  /** Requests at one time, at most; how many there are follows what the store bears. */
  readonly concurrencyMax: number;
  /** Requests that may wait for their turn; more fail with `throttled`. */
  readonly waitingCountMax: number;
  /** How often a request is sent before it fails. */
  readonly attemptCountMax: number;
  /** Objects above this size go up in parts of this size. At least 5 MiB. */
  readonly partBytes: number;
  /** Parts in memory at one time, over all uploads. */
  readonly partConcurrencyMax: number;
  /** Objects of one page of a list; 1000 at most. */
  readonly listPageCount: number;
  readonly connectTimeoutMs: number;
  /** How long a connection in use may be silent. */
  readonly silenceTimeoutMs: number;
}

export const defaultS3Limits: S3Limits = {
  concurrencyMax: 64,
  waitingCountMax: 100_000,
  attemptCountMax: 6,
  // The least that S3 takes: hashing a part holds the event loop for 2 ms a MiB.
  partBytes: 5 * 1024 * 1024,
  partConcurrencyMax: 8,
  listPageCount: 1000,
  connectTimeoutMs: 5000,
  silenceTimeoutMs: 20_000,
};

export interface S3StoreOptions {
  readonly bucket: string;
  /** URL of the store; absent for AWS itself. */
  readonly endpoint?: string | undefined;
  /** "auto": what the store wants. */
  readonly region: string;
  /** Absent: the SDK looks where AWS's tools look. */
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  readonly limits?: Partial<S3Limits> | undefined;
  /** Told of parts that could not be taken back: they cost money until the bucket's own rules remove them. */
  readonly onProblem?: ((message: string, error: unknown) => void) | undefined;
}

/** Repeats of our own, for what the SDK does not repeat: conflicts of conditional puts, and bodies that break off. */
export const REPEAT_COUNT_MAX = 5;
const REPEAT_MS = 50;
/** Where AWS tells about buckets elsewhere, and what most other stores take. */
const FALLBACK_REGION = "us-east-1";

/** What goes with a request that is sent. */
export interface Sending {
  readonly abortSignal: AbortSignal;
}

export class S3Connection {
  readonly name: string;
  readonly bucket: string;
  readonly hasEndpoint: boolean;
  readonly sdk: typeof Sdk;
  readonly client: Sdk.S3Client;
  readonly clock: Clock;
  readonly random: (byteCount: number) => Uint8Array;
  readonly limits: S3Limits;
  readonly onProblem: (message: string, error: unknown) => void;
  readonly #limiter: Limiter;
  readonly #ended = new AbortController();
  #region: string;

  constructor(options: S3StoreOptions, sdk: typeof Sdk) {
    const { bucket, endpoint, clock, random, onProblem } = options;
    // The origin alone: an endpoint may hold a password.
    this.name = `bucket ${bucket} at ${endpoint === undefined ? "AWS" : new URL(endpoint).origin}`;
    this.bucket = bucket;
    this.hasEndpoint = endpoint !== undefined;
    this.sdk = sdk;
    this.clock = clock;
    this.random = random;
    this.limits = { ...defaultS3Limits, ...options.limits };
    this.onProblem = onProblem ?? (() => undefined);
    this.#limiter = new Limiter({ ...this.limits, clock });
    this.#region = options.region;
    this.client = makeClient(sdk, options, this.limits, async () => this.#region);
    this.#watch();
    if (options.region === "auto" && this.hasEndpoint) this.#learnRegion();
  }

  /** Fires when the store is closed. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /** Calls under way fail; `destroy` is for when the last clean-up is over. */
  end(): void {
    this.#ended.abort(new ObjectStoreError("unavailable", `${this.name} is closed`));
  }

  destroy(): void {
    this.client.destroy();
  }

  /** One request within the call's bounds and ours. */
  async call<T>(
    action: string,
    what: string,
    call: ObjectCall,
    send: (sending: Sending) => Promise<T>,
    { dropped }: { readonly dropped?: (result: T) => void } = {},
  ): Promise<T> {
    const work = async (signal: AbortSignal) => {
      const release = await this.#limiter.acquire(signal);
      try {
        return await send({ abortSignal: signal });
      } finally {
        release();
      }
    };
    try {
      const ended = this.ended;
      return await bounded(this.clock, call, work, dropped === undefined ? { ended } : { ended, dropped });
    } catch (error) {
      throw this.failure(error, action, what, call);
    }
  }

  /** What a call rejects with: its signal's reason as it is, everything else in our words. */
  failure(error: unknown, action: string, what: string, call: ObjectCall): unknown {
    if (error === call.signal?.reason || error instanceof SourceFailure) return error;
    return s3Failure(error, action, `${this.name}: ${what}`);
  }

  /** A place in the line, to be given back when a stream is over. */
  acquire(call: ObjectCall): Promise<() => void> {
    return bounded(this.clock, call, (signal) => this.#limiter.acquire(signal), {
      ended: this.ended,
      dropped: (release) => release(),
    });
  }

  /** Before a repeat; longer each time, and by chance. */
  async pause(repeat: number, call: ObjectCall): Promise<void> {
    const [random = 0] = this.random(1);
    const ms = REPEAT_MS * 2 ** repeat * (0.5 + random / 256);
    await bounded(this.clock, call, (signal) => pause(this.clock, ms, signal), { ended: this.ended });
  }

  /** Sees each attempt, also those that the SDK repeats, for the bound on concurrency. */
  #watch(): void {
    this.client.middlewareStack.add(
      (next) => async (attempt) => {
        try {
          const answer = await next(attempt);
          this.#limiter.succeeded();
          return answer;
        } catch (error) {
          if (isThrottling(readS3Error(error))) this.#limiter.throttled();
          throw error;
        }
      },
      // Late in the step: inside of the SDK's repeats.
      { name: "persistoConcurrency", step: "finalizeRequest", priority: "low" },
    );
    // Deletions must carry a checksum, and older stores know this one alone.
    this.client.middlewareStack.add(
      (next, { commandName }) =>
        async (args) => {
          const request = args.request as { headers?: Record<string, string>; body?: unknown };
          if (commandName === "DeleteObjectsCommand" && typeof request.body === "string" && request.headers) {
            request.headers["content-md5"] = md5(Buffer.from(request.body));
          }
          return next(args);
        },
      { name: "persistoDeleteChecksum", step: "build", priority: "low" },
    );
  }

  /** Some stores insist on a region of theirs, and name it when they are asked with another. */
  #learnRegion(): void {
    this.client.middlewareStack.add(
      (next, { commandName }) =>
        async (args) => {
          const asked = this.#region;
          try {
            return await next(args);
          } catch (error) {
            const { name, status } = readS3Error(error);
            // Answers to HEAD have no body to name it in.
            const isMute = status === 400 && commandName === "HeadObjectCommand" && asked === "auto";
            if (name !== "AuthorizationHeaderMalformed" && !isMute) throw error;
            const region = (error as { Region?: string }).Region ?? FALLBACK_REGION;
            if (region === asked) throw error;
            this.#region = region;
            return next(args);
          }
        },
      { name: "persistoRegion", step: "initialize", priority: "low" },
    );
  }
}

function makeClient(
  sdk: typeof Sdk,
  options: S3StoreOptions,
  limits: S3Limits,
  endpointRegion: () => Promise<string>,
): Sdk.S3Client {
  const { endpoint, region, accessKeyId, secretAccessKey } = options;
  // More than requests in line: the clean-ups after failures do not stand in it.
  const agent = { keepAlive: true, maxSockets: limits.concurrencyMax + limits.partConcurrencyMax };
  return new sdk.S3Client({
    maxAttempts: limits.attemptCountMax,
    requestHandler: {
      connectionTimeout: limits.connectTimeoutMs,
      socketTimeout: limits.silenceTimeoutMs,
      httpAgent: agent,
      httpsAgent: agent,
    },
    ...(accessKeyId !== undefined && secretAccessKey !== undefined
      ? { credentials: { accessKeyId, secretAccessKey } }
      : {}),
    ...(endpoint !== undefined
      ? {
          endpoint,
          region: endpointRegion,
          forcePathStyle: true,
          requestChecksumCalculation: "WHEN_REQUIRED",
          responseChecksumValidation: "WHEN_REQUIRED",
        }
      : { region: region === "auto" ? FALLBACK_REGION : region, followRegionRedirects: region === "auto" }),
  });
}
