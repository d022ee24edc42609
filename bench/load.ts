/**
 * Load generator, a process of its own: calls by many streams at once, or at a fixed rate whatever the server does. Each
 * answer's status and bytes are checked.
 */
import { Http2Client, type PreparedRequest, prepareRequest } from "./http2-client.ts";
import { serveQuestions } from "./processes.ts";
import { percentile } from "./statistics.ts";

/** A gRPC frame in base64, and bytes that its answer must contain, in base64. */
export interface LoadCall {
  readonly frame: string;
  readonly contains: string;
}

export interface LoadQuestion {
  readonly port: number;
  readonly path: string;
  /** Taken in turn. */
  readonly calls: readonly LoadCall[];
  readonly connections: number;
  /** Calls at a time on a connection; with a rate: at most this many. */
  readonly streams: number;
  readonly seconds: number;
  /** Undefined: the next call leaves when one is answered. */
  readonly callsPerSecond?: number;
}

export interface LoadAnswer {
  /** Answered within the time; calls still open at its end are waited for, and counted in `callsAnswered` alone. */
  readonly callsPerSecond: number;
  readonly callsAnswered: number;
  /** Answers with another status or without the expected bytes, and calls that could not leave at their time. */
  readonly wrong: number;
  readonly p50Micros: number;
  readonly p99Micros: number;
  readonly maxMicros: number;
}

const samplesMax = 2_000_000;
const lastAnswerMs = 20_000;

class Load {
  readonly #question: LoadQuestion;
  readonly #requests: { readonly request: PreparedRequest; readonly contains: Buffer }[];
  readonly #clients: Http2Client[];
  readonly #inFlight: number[];
  readonly #latencies = new Float64Array(samplesMax);
  readonly #startedAt = performance.now();
  readonly #endAt: number;
  #trailers: Buffer | undefined;
  #sent = 0;
  #answered = 0;
  #answeredInTime = 0;
  #wrong = 0;
  #finish: () => void = () => undefined;
  #failure: Error | undefined;

  constructor(question: LoadQuestion) {
    this.#question = question;
    this.#endAt = this.#startedAt + question.seconds * 1000;
    this.#requests = question.calls.map((call) => ({
      request: prepareRequest(question.path, question.port, Buffer.from(call.frame, "base64")),
      contains: Buffer.from(call.contains, "base64"),
    }));
    this.#inFlight = Array.from({ length: question.connections }, () => 0);
    this.#clients = this.#inFlight.map(
      () =>
        new Http2Client({
          port: question.port,
          windowBytes: 1 << 24,
          onFailure: (error) => {
            this.#failure ??= error;
            this.#finish();
          },
        }),
    );
  }

  async run(): Promise<LoadAnswer> {
    const finished = new Promise<void>((resolve) => {
      this.#finish = resolve;
    });
    const giveUp = setTimeout(
      () => {
        this.#failure ??= new Error(`${this.#sent - this.#answered} calls were not answered`);
        this.#finish();
      },
      this.#question.seconds * 1000 + lastAnswerMs,
    );
    const pace = this.#question.callsPerSecond === undefined ? this.#fill() : this.#keepRate();
    await finished;
    clearTimeout(giveUp);
    clearInterval(pace);
    for (const client of this.#clients) client.close();
    if (this.#failure !== undefined) throw this.#failure;
    const sorted = this.#latencies.subarray(0, Math.min(this.#answered, samplesMax)).sort();
    return {
      callsPerSecond: this.#answeredInTime / this.#question.seconds,
      callsAnswered: this.#answered,
      wrong: this.#wrong,
      p50Micros: percentile(sorted, 0.5) * 1000,
      p99Micros: percentile(sorted, 0.99) * 1000,
      maxMicros: percentile(sorted, 1) * 1000,
    };
  }

  #fill(): undefined {
    for (let connection = 0; connection < this.#clients.length; connection++) {
      for (let stream = 0; stream < this.#question.streams; stream++) this.#send(connection);
    }
  }

  #keepRate(): NodeJS.Timeout {
    const perMs = (this.#question.callsPerSecond ?? 0) / 1000;
    let due = 0;
    return setInterval(() => {
      const now = performance.now();
      for (; due < (Math.min(now, this.#endAt) - this.#startedAt) * perMs; due++) {
        const connection = due % this.#clients.length;
        if ((this.#inFlight[connection] ?? 0) < this.#question.streams) this.#send(connection);
        else this.#wrong++;
      }
      if (now >= this.#endAt) this.#finishWhenAnswered();
    }, 1);
  }

  #finishWhenAnswered(): void {
    if (this.#answered === this.#sent) this.#finish();
  }

  #send(connection: number): void {
    const chosen = this.#requests[this.#sent++ % this.#requests.length];
    const client = this.#clients[connection];
    if (chosen === undefined || client === undefined) throw new Error("nothing to send");
    this.#inFlight[connection] = (this.#inFlight[connection] ?? 0) + 1;
    const sentAt = performance.now();
    let body: Buffer | undefined;
    client.send(chosen.request, {
      data(bytes) {
        body = body === undefined ? bytes : Buffer.concat([body, bytes]);
      },
      end: (trailers) => {
        const now = performance.now();
        if (this.#answered < samplesMax) this.#latencies[this.#answered] = now - sentAt;
        this.#answered++;
        this.#inFlight[connection] = (this.#inFlight[connection] ?? 0) - 1;
        if (!this.#isRight(body, trailers, chosen.contains)) this.#wrong++;
        if (now < this.#endAt) {
          this.#answeredInTime++;
          if (this.#question.callsPerSecond === undefined) this.#send(connection);
        } else this.#finishWhenAnswered();
      },
    });
  }

  /**
   * A message of the announced length that contains the expected bytes, then the trailers of the first such answer. A
   * failed unary call has no message, so those trailers say OK.
   */
  #isRight(body: Buffer | undefined, trailers: Buffer | undefined, contains: Buffer): boolean {
    if (body === undefined || trailers === undefined || body.length < 5) return false;
    if (body[0] !== 0 || body.readUInt32BE(1) !== body.length - 5 || !body.includes(contains)) return false;
    this.#trailers ??= Buffer.from(trailers);
    return trailers.equals(this.#trailers);
  }
}

serveQuestions<LoadQuestion>({}, (question) => new Load(question).run());
