/** Rules of ids and labels. */
import type { FieldViolation } from "../failure/failure.ts";

const idPattern = /^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$/;
const labelKeyPattern = /^[a-z][a-z0-9_.-]{0,62}$/;
const labelValueCharactersMax = 256;

/** What an id must be, for messages. */
export const idRule = "must be 1 to 128 characters of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends";

/** True for a database id. Such an id is also a safe name of a folder: no separator, and never `.` or `..`. */
export function isDatabaseId(id: string): boolean {
  return idPattern.test(id);
}

/** True for the key of a label. */
export function isLabelKey(key: string): boolean {
  return labelKeyPattern.test(key);
}

/** Every rule that the labels break; `path` is where they stand in the request. */
export function labelViolations(
  labels: Readonly<Record<string, string>>,
  countMax: number,
  path = "labels",
): FieldViolation[] {
  const entries = Object.entries(labels);
  if (entries.length > countMax) {
    return [{ field: path, description: `must be at most ${countMax}, not ${entries.length}` }];
  }
  const violations: FieldViolation[] = [];
  for (const [key, value] of entries) {
    // A key is the caller's text: it is shown cut and only as far as it is harmless.
    const field = `${path}.${key.slice(0, 64).replace(/[^\x20-\x7e]/g, "?")}`;
    if (!isLabelKey(key)) {
      violations.push({ field, description: "must have a key like [a-z][a-z0-9_.-]{0,62}" });
    } else if (characterCount(value) > labelValueCharactersMax) {
      violations.push({ field, description: `must be at most ${labelValueCharactersMax} characters` });
    } else if (value.includes("\0") || !value.isWellFormed()) {
      violations.push({ field, description: "must be text without NUL and without half characters" });
    }
  }
  return violations;
}

function characterCount(text: string): number {
  if (text.length <= labelValueCharactersMax) return text.length;
  if (text.length > 2 * labelValueCharactersMax) return text.length;
  let count = 0;
  for (const _ of text) count++;
  return count;
}
