/** Where a database should live: a pure function of what is known of it, with the reason in one sentence. */
import type { PinInfo, StageName } from "../engine.ts";
import type { HeadPlace } from "../facts.ts";
import type { PlacementSettings } from "../options.ts";

/** What decides about one database. */
export interface PlacementFacts {
  readonly stage: StageName;
  readonly head: HeadPlace;
  readonly pin: PinInfo | undefined;
  /** Calls within the window. */
  readonly requestCount: number;
  /** Since the last call. */
  readonly idleMs: number;
  /** Since it was moved last; infinite when it never was. */
  readonly sinceMoveMs: number;
}

export type PolicySettings = Pick<
  PlacementSettings,
  "autoMovement" | "timeoutMs" | "requestCountThreshold" | "requestWindowMs" | "cooldownMs"
>;

/** What the server has. */
export interface Tiers {
  readonly hasMemory: boolean;
  /** True when data is carried to a remote stage by itself, so that a database may live there alone. */
  readonly carriesToRemote: boolean;
}

export interface Decision {
  /** Where it should live; the stage where it lives when nothing is to be done. */
  readonly target: StageName;
  /** True when a remote database should lose the head that it was used in. */
  readonly dropsHead: boolean;
  /** One sentence. */
  readonly reason: string;
}

/** Stages from the closest outward. */
export const stagesOutward: readonly StageName[] = ["memory", "local", "remote"];

/** The stage one closer, or undefined at the closest. */
export function closerStage(stage: StageName): StageName | undefined {
  return stagesOutward[stagesOutward.indexOf(stage) - 1];
}

/** The stage one farther, or undefined at the farthest. */
export function fartherStage(stage: StageName): StageName | undefined {
  return stagesOutward[stagesOutward.indexOf(stage) + 1];
}

export function isCloser(one: StageName, other: StageName): boolean {
  return stagesOutward.indexOf(one) < stagesOutward.indexOf(other);
}

/** The pin that holds at a time; one whose time is over is none. */
export function activePin(pin: PinInfo | undefined, nowMs: number): PinInfo | undefined {
  return pin?.expireTimeMs !== undefined && pin.expireTimeMs <= nowMs ? undefined : pin;
}

/** `nowMs`: milliseconds since 1970, for the pin. */
export function decide(facts: PlacementFacts, settings: PolicySettings, tiers: Tiers, nowMs: number): Decision {
  const { stage, head, requestCount, idleMs, sinceMoveMs } = facts;
  const { timeoutMs, requestCountThreshold, requestWindowMs, cooldownMs } = settings;
  const stay = (reason: string): Decision => ({ target: stage, dropsHead: false, reason });

  const pin = activePin(facts.pin, nowMs);
  if (pin !== undefined) {
    const until = pin.expireTimeMs === undefined ? "until it is unpinned" : `until ${timeOf(pin.expireTimeMs)}`;
    if (!exists(pin.stage, tiers)) {
      return stay(`It is pinned to the ${pin.stage} stage ${until}, and this server has none; it stays on ${stage}.`);
    }
    const reason = `It is pinned to the ${pin.stage} stage ${until}.`;
    return { target: pin.stage, dropsHead: dropsIdleHead(facts, pin.stage, settings), reason };
  }
  if (!settings.autoMovement) {
    return stay(`It is on the ${stage} stage because it was created or moved there; automatic movement is off.`);
  }
  if (sinceMoveMs < cooldownMs) {
    return stay(
      `It was moved to the ${stage} stage ${time(sinceMoveMs)} ago, and rests there for ${time(cooldownMs)} after a move.`,
    );
  }
  const closer = closerStage(stage);
  if (closer !== undefined && exists(closer, tiers) && requestCount >= requestCountThreshold) {
    const calls = `${requestCount} ${requestCount === 1 ? "call" : "calls"} within ${time(requestWindowMs)}`;
    return {
      target: closer,
      dropsHead: false,
      reason: `It moves to the ${closer} stage: ${calls}, and ${requestCountThreshold} are enough.`,
    };
  }
  if (idleMs >= timeoutMs) {
    const idle = `no call for ${time(idleMs)}, and ${time(timeoutMs)} are enough`;
    const farther = fartherStage(stage);
    if (farther !== undefined && exists(farther, tiers)) {
      return { target: farther, dropsHead: false, reason: `It moves to the ${farther} stage: ${idle}.` };
    }
    if (dropsIdleHead(facts, stage, settings)) {
      return {
        target: stage,
        dropsHead: true,
        reason: `It lives on the remote stage and leaves the local disk: ${idle}.`,
      };
    }
    if (head === "none") {
      return stay(`It is on the remote stage: no call for ${time(idleMs)}.`);
    }
    return stay(`It is on the ${stage} stage, and there is no farther one to move to: no call for ${time(idleMs)}.`);
  }
  const used = `the last call was ${time(idleMs)} ago`;
  if (stage === "remote") {
    return stay(
      `It lives on the remote stage: ${used}, with ${requestCount} of the ${requestCountThreshold} calls within ` +
        `${time(requestWindowMs)} that would move it closer.`,
    );
  }
  return stay(`It is in use on the ${stage} stage: ${used}, and ${time(timeoutMs)} without one would move it farther.`);
}

/** A remote database in use has a local head, which goes when nobody uses it any more. */
function dropsIdleHead({ stage, head, idleMs }: PlacementFacts, target: StageName, settings: PolicySettings): boolean {
  return stage === "remote" && target === "remote" && head !== "none" && idleMs >= settings.timeoutMs;
}

function exists(stage: StageName, { hasMemory, carriesToRemote }: Tiers): boolean {
  return stage === "memory" ? hasMemory : stage === "remote" ? carriesToRemote : true;
}

function timeOf(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d+Z$/, "Z");
}

/** A time span as people say it. */
function time(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} days`;
}

/** What the value of a copy depends on. */
export interface Worth {
  readonly requestCount: number;
  readonly idleMs: number;
  readonly sizeBytes: number;
}

/** Sizes below this cost the same: a database takes a folder and a few files whatever it holds. */
const sizeBytesMin = 64 * 1024;

/**
 * What it is worth to keep a database where it is, by byte that it takes: more calls and a more recent one make it more
 * valuable. Under pressure the least valuable ones go first.
 */
export function worth({ requestCount, idleMs, sizeBytes }: Worth, windowMs: number): number {
  return (1 + requestCount) / (1 + idleMs / windowMs) / Math.max(sizeBytes, sizeBytesMin);
}
