/** Log lines for people. A module of its own, so that it is loaded for terminals only. */
import type { DestinationStream } from "pino";
import { prettyFactory } from "pino-pretty";

export function prettyOn(output: DestinationStream): DestinationStream {
  const pretty = prettyFactory({
    colorize: true,
    messageKey: "message",
    errorLikeObjectKeys: ["error"],
    levelKey: "level",
    ignore: "pid",
    translateTime: "SYS:HH:MM:ss.l",
  });
  return { write: (line) => output.write(pretty(withoutControls(line))) };
}

/** What callers wrote must not steer the terminal: control characters of a JSON line become replacement characters. */
function withoutControls(line: string): string {
  return line
    .replace(/(?<!\\)((?:\\\\)*)\\(?:u00[01][0-9a-f]|[bfr])/gi, "$1\ufffd")
    .replace(/[\u007f-\u009f]/g, "\ufffd");
}
