/** What commands of the program share: arguments, output, how they end. */
import type { Clock } from "../clock.ts";
import type { Settings } from "../settings/settings.ts";

export interface CommandInput {
  /** What follows the command's name. */
  readonly args: readonly string[];
  readonly settings: Settings;
  readonly clock: Clock;
  readonly randomBytes: (byteCount: number) => Uint8Array;
  /** From 0 to below 1. */
  readonly random: () => number;
  /** What was asked for. */
  readonly print: (text: string) => void;
  /** What went wrong, for people. */
  readonly complain: (text: string) => void;
  /** Ends the command early; it clears up before it rejects. */
  readonly signal: AbortSignal;
}

/**
 * - `good` 0: everything is as it should be.
 * - `bad` 1: it is not.
 * - `unknown` 2: it could not be found out, or the command was called wrongly.
 */
export type ExitCode = 0 | 1 | 2;

export type Command = (input: CommandInput) => Promise<ExitCode>;

/** The command was called wrongly, or cannot do its work here. The message says what to do. */
export class CommandError extends Error {
  override readonly name = "CommandError";
}

export interface ParsedArguments {
  readonly values: readonly string[];
  readonly flags: ReadonlySet<string>;
}

/** Splits arguments into values and `--flags`; throws CommandError with the usage for anything that is not foreseen. */
export function parseArguments(
  args: readonly string[],
  usage: string,
  { flags, valueCounts }: { readonly flags: readonly string[]; readonly valueCounts: readonly number[] },
): ParsedArguments {
  const given = new Set(args.filter((arg) => arg.startsWith("--")));
  const values = args.filter((arg) => !arg.startsWith("--"));
  const unknown = [...given].find((flag) => !flags.includes(flag));
  if (unknown !== undefined) throw new CommandError(`${unknown} is not known\n${usage}`);
  if (!valueCounts.includes(values.length)) throw new CommandError(usage);
  return { values, flags: given };
}
