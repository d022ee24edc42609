/** The commands of the program, each loaded when it is asked for. */
import { ObjectStoreError } from "../objects/object-store.ts";
import { type Command, CommandError, type CommandInput, type ExitCode } from "./command.ts";

const commands: Readonly<Record<string, () => Promise<Command>>> = {
  verify: async () => (await import("./verify.ts")).verify,
  adopt: async () => (await import("./adopt.ts")).adopt,
};

const usage = `usage: main.js                                    serves
       main.js verify [DATABASE] [--json]         checks all copies of databases
       main.js adopt DATABASE PREFIX [--dry-run] [--json]
       main.js adopt DATABASE PATH --folder [--dry-run] [--json]
                                                  takes over a replica that Litestream wrote
`;

/** Runs a command by its name. Resolves with the exit code, after what went wrong was said. */
export async function runCommand(name: string, input: CommandInput): Promise<ExitCode> {
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load === undefined) {
    const isHelp = name === "help" || name === "--help";
    (isHelp ? input.print : input.complain)(isHelp ? usage : `${name} is no command\n${usage}`);
    return isHelp ? 0 : 2;
  }
  try {
    return await (await load())(input);
  } catch (error) {
    if (input.signal.aborted) input.complain("ended early\n");
    else if (error instanceof CommandError || error instanceof ObjectStoreError) input.complain(`${error.message}\n`);
    else throw error;
    return 2;
  }
}
