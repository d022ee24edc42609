/** grpc.health.v1: whether calls are served, for balancers and orchestrators. */
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import { type Health, HealthCheckResponse_ServingStatus as ServingStatus } from "../../gen/health/v1/health_pb.js";
import { Failure } from "../failure/failure.ts";

const watcherCountMax = 1000;

/** The state that is told. The empty name stands for the whole server; all services share its fate. */
export class HealthState {
  readonly #names: ReadonlySet<string>;
  readonly #watchers = new Set<() => void>();
  #isServing = false;
  #isOver = false;

  constructor(serviceNames: Iterable<string>) {
    this.#names = new Set(["", ...serviceNames]);
  }

  get isServing(): boolean {
    return this.#isServing;
  }

  /** Watchers are told at once. */
  setServing(isServing: boolean): void {
    if (isServing !== this.#isServing) {
      this.#isServing = isServing;
      for (const wake of this.#watchers) {
        wake();
      }
    }
  }

  /** The server takes no more calls: watches end when they have told the last change. */
  end(): void {
    this.#isOver = true;
    for (const wake of this.#watchers) {
      wake();
    }
  }

  get names(): Iterable<string> {
    return this.#names;
  }

  /** Undefined for a service that this server does not have. */
  status(name: string): ServingStatus | undefined {
    if (!this.#names.has(name)) {
      return undefined;
    }
    return this.#isServing ? ServingStatus.SERVING : ServingStatus.NOT_SERVING;
  }

  /** The status now and at each change, until the signal or the server's end. Changes that nobody has read yet are told as one. */
  async *watch(name: string, signal: AbortSignal): AsyncGenerator<ServingStatus> {
    if (this.#watchers.size >= watcherCountMax) {
      throw new ConnectError(`more than ${watcherCountMax} watchers; use Check`, Code.ResourceExhausted);
    }
    let changed = Promise.withResolvers<void>();
    const wake = () => changed.resolve();
    this.#watchers.add(wake);
    signal.addEventListener("abort", wake);
    try {
      let told: ServingStatus | undefined;
      while (!signal.aborted) {
        const status = this.status(name) ?? ServingStatus.SERVICE_UNKNOWN;
        if (status !== told) {
          told = status;
          yield status;
        } else if (this.#isOver) {
          throw new Failure("SHUTTING_DOWN");
        } else {
          await changed.promise;
          changed = Promise.withResolvers<void>();
        }
      }
      throw signal.reason;
    } finally {
      this.#watchers.delete(wake);
      signal.removeEventListener("abort", wake);
    }
  }
}

export function healthMethods(state: HealthState): ServiceImpl<typeof Health> {
  return {
    check({ service }) {
      const status = state.status(service);
      if (status === undefined) {
        throw new ConnectError(`this server has no service ${service.slice(0, 200)}`, Code.NotFound);
      }
      return { status };
    },

    list() {
      const entries = [...state.names].map((name) => [name, { status: state.status(name) as ServingStatus }] as const);
      return { statuses: Object.fromEntries(entries) };
    },

    async *watch({ service }, { signal }) {
      for await (const status of state.watch(service, signal)) {
        yield { status };
      }
    },
  };
}
